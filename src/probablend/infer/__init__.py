"""From an image to probabilities, objects and a catalogue."""
