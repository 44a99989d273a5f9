// The image on the page: layers of tiles, and the footprints that are drawn over them.
// Positions x, y are those of the catalogue: the centre of the first pixel is (0, 0), y upwards.

const MANY = 5000; // sources in view from which each is a dot
const NEAR = 12; // screen pixels around a click
const SELECTED = "#ff5edb";

// OpenSeadragon adds a style of its own, which the security policy forbids, unless it finds this.
const unstyled = document.createElementNS(null, "style");
unstyled.setAttribute("data-openseadragon-mobile-css", "");
document.head.append(unstyled);

export class SkyMap {
  // `calm` says whether motion is unwelcome.
  constructor(element, overlay, info, calm) {
    this.info = info;
    this.overlay = overlay;
    this.items = new Map();
    this.sources = null;
    this.draws = null;
    this.isShown = () => true;
    this.isSelected = () => false;
    this.viewer = OpenSeadragon({
      element,
      drawer: "canvas",
      showNavigationControl: false,
      animationTime: calm ? 0 : 0.6,
      blendTime: 0,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false },
      imageSmoothingEnabled: false,
      maxZoomPixelRatio: 40,
      minZoomImageRatio: 0.7,
      visibilityRatio: 0.2,
      maxImageCacheCount: 600,
    });
    const smooth = () => this.viewer.drawer.setImageSmoothingEnabled(this.scale() < 1);
    for (const event of ["update-viewport", "resize"]) this.viewer.addHandler(event, () => this.redraw());
    this.viewer.addHandler("animation-finish", smooth);
    // Arrows pan; every other key is the page's own.
    this.viewer.addHandler("canvas-key", (event) => {
      event.preventDefaultAction = !event.originalEvent.key.startsWith("Arrow");
    });
  }

  // Put a layer on top; resolves when all its tiles in view are there. Others leave only then.
  async show(name) {
    this.current = name;
    if (!this.items.has(name)) this.items.set(name, this.add(name));
    const item = await this.items.get(name);
    if (this.current !== name) return;
    const world = this.viewer.world;
    world.setItemIndex(item, world.getItemCount() - 1);
    item.setOpacity(1);
    await this.loaded(item);
    if (this.current !== name) return;
    for (const other of await Promise.all(this.items.values())) if (other !== item) other.setOpacity(0);
  }

  add(name) {
    const { width, height, tile, levels, run } = this.info;
    const tileSource = {
      width, height, tileSize: tile, tileOverlap: 0, minLevel: 0, maxLevel: levels - 1,
      getTileUrl: (level, column, row) =>
        `/tiles/${name}/${levels - 1 - level}/${column}_${row}.png?run=${run}`,
    };
    return new Promise((success, error) =>
      this.viewer.addTiledImage({
        tileSource, x: 0, y: 0, width: 1, success: (event) => success(event.item), error,
      }));
  }

  loaded(item) {
    return new Promise((resolve) => {
      const look = () => (item.getFullyLoaded() ? resolve() : setTimeout(look, 30));
      setTimeout(look, 30); // after the frame in which it starts to load
    });
  }

  // Screen pixels per image pixel.
  scale() {
    return (this.viewer.viewport.getZoom(true) * this.overlay.clientWidth) / this.info.width;
  }

  point(x, y) {
    const { width, height } = this.info;
    return new OpenSeadragon.Point((x + 0.5) / width, (height - 0.5 - y) / width);
  }

  toScreen(x, y) {
    return this.viewer.viewport.pixelFromPoint(this.point(x, y), true);
  }

  toImage(screen) {
    const { width, height } = this.info;
    const point = this.viewer.viewport.pointFromPixel(screen, true);
    return { x: point.x * width - 0.5, y: height - 0.5 - point.y * width };
  }

  centre() {
    const { clientWidth, clientHeight } = this.overlay;
    return this.toImage(new OpenSeadragon.Point(clientWidth / 2, clientHeight / 2));
  }

  // Centre on a position, close enough to see a galaxy.
  goTo(x, y, calm, pixels = 8) {
    const viewport = this.viewer.viewport;
    const zoom = (pixels * this.info.width) / this.overlay.clientWidth;
    viewport.zoomTo(Math.max(zoom, viewport.getZoom()), null, calm);
    viewport.panTo(this.point(x, y), calm);
  }

  home(calm) {
    this.viewer.viewport.goHome(calm);
  }

  zoomBy(factor) {
    this.viewer.viewport.zoomBy(factor);
    this.viewer.viewport.applyConstraints();
  }

  // Row of the source at a position: in whose ellipse it lies deepest, else the nearest centre.
  pick({ x, y }) {
    const s = this.sources;
    let best = -1, depth = 1, near = -1, distance = NEAR / this.scale();
    for (let k = 0; k < this.info.sources; k++) {
      if (!this.isShown(k)) continue;
      const dx = x - s.x[k], dy = y - s.y[k], r = Math.hypot(dx, dy);
      if (r < distance) [near, distance] = [k, r];
      if (r > s.a[k]) continue;
      const cos = Math.cos(s.angle[k]), sin = Math.sin(s.angle[k]);
      const rho = Math.hypot((dx * cos + dy * sin) / s.a[k], (dy * cos - dx * sin) / s.b[k]);
      if (rho < depth) [best, depth] = [k, rho];
    }
    return best >= 0 ? best : near;
  }

  redraw() {
    const { overlay } = this;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(overlay.clientWidth * ratio), height = Math.round(overlay.clientHeight * ratio);
    if (overlay.width !== width || overlay.height !== height) [overlay.width, overlay.height] = [width, height];
    const pen = overlay.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!this.sources || !this.viewer.world.getItemCount()) return;
    const zero = this.toScreen(0, 0), scale = this.scale();
    const at = (x, y) => [zero.x + x * scale, zero.y - y * scale];
    const seen = this.inView(at, scale);
    if (seen.length > MANY) this.drawDots(pen, seen, at, ratio);
    else {
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      for (const k of seen) this.drawSource(pen, k, at, scale);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (this.draws) this.drawDraws(pen, at, scale);
  }

  inView(at, scale) {
    const { x, y, a } = this.sources;
    const { clientWidth, clientHeight } = this.overlay;
    const seen = [];
    for (let k = 0; k < this.info.sources; k++) {
      if (!this.isShown(k)) continue;
      const [u, v] = at(x[k], y[k]), r = a[k] * scale;
      if (u > -r && v > -r && u < clientWidth + r && v < clientHeight + r) seen.push(k);
    }
    return seen;
  }

  drawDots(pen, seen, at, ratio) {
    const { width, height } = this.overlay;
    const picture = pen.createImageData(width, height);
    const words = new Uint32Array(picture.data.buffer);
    for (const k of seen) {
      const [u, v] = at(this.sources.x[k], this.sources.y[k]).map((w) => Math.floor(w * ratio));
      const colour = this.isSelected(k) ? 0xffdb5eff : 0x90ffffff;
      for (const [du, dv] of [[0, 0], [1, 0], [0, 1], [1, 1]]) {
        if (u + du >= 0 && u + du < width && v + dv >= 0 && v + dv < height) words[(v + dv) * width + u + du] = colour;
      }
    }
    pen.putImageData(picture, 0, 0);
  }

  drawSource(pen, k, at, scale) {
    const { x, y, a, b, angle } = this.sources;
    const selected = this.isSelected(k);
    const trace = () => {
      pen.beginPath();
      // Angles run from x towards y; on the screen y points down.
      pen.ellipse(...at(x[k], y[k]), Math.max(a[k] * scale, 2), Math.max(b[k] * scale, 2), -angle[k], 0, 7);
      pen.stroke();
    };
    pen.setLineDash(selected ? [] : [4, 4]);
    if (selected) {
      [pen.strokeStyle, pen.lineWidth] = ["rgb(0 0 0 / 70%)", 4];
      trace();
    }
    [pen.strokeStyle, pen.lineWidth] = [selected ? SELECTED : "rgb(255 255 255 / 75%)", selected ? 2 : 1];
    trace();
    pen.setLineDash([]);
  }

  // The open source: every drawn footprint, or its median one.
  drawDraws(pen, at, scale) {
    const { x, y, a, b, angle } = this.draws;
    pen.strokeStyle = "#ffffff";
    [pen.globalAlpha, pen.lineWidth] = a.length > 1 ? [0.35, 1] : [1, 3];
    for (let k = 0; k < a.length; k++) {
      pen.beginPath();
      pen.ellipse(...at(x[k], y[k]), a[k] * scale, b[k] * scale, -angle[k], 0, 7);
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }
}
