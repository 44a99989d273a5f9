// Which sources are selected, and what that selection is expected to be worth.

export class Selection {
  constructor(sources) {
    this.p = sources.p_blend;
    this.order = Uint32Array.from(this.p.keys())
      .filter((k) => !Number.isNaN(this.p[k]))
      .sort((i, j) => this.p[j] - this.p[i] || i - j);
    this.sum = new Float64Array(this.order.length + 1);
    this.order.forEach((k, n) => (this.sum[n + 1] = this.sum[n] + this.p[k]));
    this.threshold = 0.5;
  }

  has(k) {
    return this.p[k] > this.threshold;
  }

  // How many are selected: they come first in `order`.
  count(threshold = this.threshold) {
    let [low, high] = [0, this.order.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.p[this.order[middle]] > threshold) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  // Of the selected, Σp are expected to be blended; of all that are, Σp / Σ(all p) are selected.
  expected(threshold = this.threshold) {
    const n = this.count(threshold);
    return { n, purity: this.sum[n] / n, completeness: this.sum[n] / this.sum.at(-1) };
  }
}
