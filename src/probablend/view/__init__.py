"""The viewer: reads products, shows them in the browser, computes no science."""
