// <time-chart data-chart='{...}'>: a chart over time. The plot lives in a shadow root, so that morphing the
// page around it leaves it alone; the content of the element is the SVG for browsers without scripts.
// uPlot draws lines, areas and axes; stacks, gaps, marks, the legend and colours from our tokens are drawn here.
import { longSpan } from "./times.js";
import uPlot from "./vendor/uPlot.esm.js";

const CURSOR = "page";
const HEIGHT = 148;
const HATCH_STEP = 7;
const STYLE = "./css/chart.css";

// 0.4 ms, 6.1 ms, 340 ms, 2.1 s, 3 m 12 s, 2 h 5 m, 3 d 4 h: as on the pages, with one decimal below 10 ms.
export function formatSeconds(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return "0 ms";
  if (seconds < 0.00005) return "<0.1 ms";
  if (seconds < 0.00995) return `${(seconds * 1000).toFixed(1)} ms`;
  if (seconds < 0.9995) return `${(seconds * 1000).toFixed(0)} ms`;
  return seconds < 59.95 ? `${seconds.toFixed(1)} s` : longSpan(Math.round(seconds));
}

// A tick of the axis is a round number: 0, 250 µs, 2.5 ms, 2 s, 1 m 30 s, 5 m.
function tickSeconds(seconds) {
  if (seconds === 0) return "0";
  if (seconds < 0.001) return `${Number((seconds * 1e6).toPrecision(3))} µs`;
  if (seconds < 1) return `${Number((seconds * 1000).toPrecision(3))} ms`;
  return seconds < 60 ? `${Number(seconds.toFixed(1))} s` : longSpan(Math.round(seconds)).replace(/ 0 \w$/, "");
}

export function formatCount(count) {
  if (count === null || count === undefined) return "–";
  return count > 9999 ? String(count).replace(/\B(?=(\d{3})+$)/g, "\u202f") : String(count);
}

function shortCount(count) {
  if (count >= 1e6) return `${Number((count / 1e6).toPrecision(3))} M`;
  return count >= 1e4 ? `${Number((count / 1e3).toPrecision(3))} k` : String(count);
}

// Times under the axis, in the viewer's zone and format; at midnight the day instead of the hour.
function moments(ticks, step) {
  const day = (date) => date.toLocaleDateString([], { day: "numeric", month: "short" });
  const hour = (date) => date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  return ticks.map((tick) => {
    const date = new Date(tick * 1000);
    return step >= 86400 || date.getHours() + date.getMinutes() === 0 ? day(date) : hour(date);
  });
}

const UNITS = {
  count: { full: formatCount, axis: shortCount },
  seconds: { full: formatSeconds, axis: tickSeconds },
};

// Each layer of a stack is the sum of itself and those below; drawn from the top down, each covers the last.
export function stacked(series) {
  const sums = new Array(series[0]?.values.length ?? 0).fill(0);
  return series.map(({ values }) => values.map((value, i) => (sums[i] += value ?? 0)));
}

// Registered properties compute to rgb(…), however the tokens are written.
function faded(colour, share) {
  return share === 1 ? colour : colour.replace(/^rgb\((.+)\)$/, `rgba($1, ${share})`);
}

// A value without neighbours has no line, so it is a dot.
const LONE_POINTS = {
  size: 4,
  show: () => false,
  filter: (plot, index) => {
    const values = plot.data[index];
    const known = (at) => values[at] !== null && values[at] !== undefined;
    return Array.from(values.keys()).filter((at) => known(at) && !known(at - 1) && !known(at + 1));
  },
};

function element(tag, className, text = "") {
  const created = document.createElement(tag);
  created.className = className;
  created.textContent = text;
  return created;
}

class TimeChart extends HTMLElement {
  static observedAttributes = ["data-chart"];
  #plot = null;
  #chart = null;
  #shape = "";
  #legend = element("div", "legend");
  #box = element("div", "plot");
  #resized = new ResizeObserver(() => this.#resize());
  #repaint = () => this.#build();

  connectedCallback() {
    if (!this.shadowRoot) this.#createShadow();
    this.#resized.observe(this);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", this.#repaint);
    themes.add(this.#repaint);
    this.#show();
  }

  disconnectedCallback() {
    this.#resized.disconnect();
    matchMedia("(prefers-color-scheme: dark)").removeEventListener("change", this.#repaint);
    themes.delete(this.#repaint);
    this.#plot?.destroy();
    this.#plot = null;
  }

  attributeChangedCallback() {
    if (this.isConnected && this.shadowRoot) this.#show();
  }

  #createShadow() {
    const root = this.attachShadow({ mode: "open" });
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = new URL(STYLE, import.meta.url).href;
    root.append(link);
    root.append(this.#legend, this.#box);
  }

  #show() {
    const chart = JSON.parse(this.dataset.chart);
    const shape = JSON.stringify([chart.kind, chart.unit, chart.series.map((each) => each.name)]);
    this.#chart = chart;
    if (this.#plot && shape === this.#shape) {
      this.#plot.setData(this.#columns());
      this.#updateLegend(this.#plot.cursor.idx);
    } else {
      this.#shape = shape;
      this.#build();
    }
  }

  #columns() {
    const { at, series, kind } = this.#chart;
    if (kind === "stacked") return [at, ...stacked(series).reverse()];
    return [at, ...series.map((each) => each.values)];
  }

  #colour(name) {
    return getComputedStyle(this).getPropertyValue(name).trim();
  }

  #build() {
    this.#plot?.destroy();
    this.#box.replaceChildren();
    this.#plot = new uPlot(this.#options(), this.#columns(), this.#box);
    this.#drawLegend();
    this.#updateLegend(null);
  }

  #options() {
    const quiet = this.#colour("--text-muted");
    const line = this.#colour("--line");
    const font = `11px ${this.#colour("--font-text") || "system-ui"}`;
    const axis = { stroke: quiet, font, ticks: { show: false }, grid: { stroke: line, width: 1 } };
    const unit = UNITS[this.#chart.unit];
    return {
      width: Math.max(this.clientWidth, 40),
      height: HEIGHT,
      padding: [8, 18, 0, 0],
      legend: { show: false },
      scales: { x: { range: () => this.#span() }, y: { range: (_, __, max) => [0, max > 0 ? max * 1.08 : 1] } },
      axes: [
        {
          ...axis,
          size: 24,
          grid: { show: false },
          space: 64,
          values: (_, ticks, __, ___, step) => moments(ticks, step),
        },
        { ...axis, size: 52, space: 32, values: (_, ticks) => ticks.map(unit.axis), incrs: this.#increments() },
      ],
      cursor: this.#cursor(),
      hooks: {
        drawClear: [(plot) => this.#hatch(plot)],
        draw: [(plot) => this.#veil(plot), (plot) => this.#mark(plot)],
        setCursor: [(plot) => this.#updateLegend(plot.cursor.idx)],
        setSelect: [(plot) => this.#zoom(plot)],
      },
      series: [{}, ...this.#series()],
    };
  }

  #increments() {
    if (this.#chart.unit === "seconds") return undefined;
    return [1, 2, 5].flatMap((n) => Array.from({ length: 10 }, (_, p) => n * 10 ** p)).sort((a, b) => a - b);
  }

  #cursor() {
    const moves = (type) => type === "mousemove" || type === "mouseleave";
    return {
      y: false,
      points: { show: this.#chart.kind !== "stacked", size: 5 },
      drag: { x: true, y: false, setScale: false },
      sync: { key: CURSOR, setSeries: false, scales: ["x", null], filters: { pub: moves, sub: moves } },
    };
  }

  #span() {
    return [this.#chart.since, this.#chart.until];
  }

  #series() {
    const { series, kind } = this.#chart;
    if (kind !== "stacked") return series.map((each) => this.#line(each, kind));
    const paths = uPlot.paths.bars({ size: [0.86, 64], align: 1, radius: 0 });
    return series
      .map((each) => ({ fill: this.#colour(each.colour), width: 0, points: { show: false }, paths }))
      .reverse();
  }

  #line({ colour, weight }, kind) {
    const stroke = this.#colour(colour);
    const fill = kind === "area" ? faded(stroke, 0.15) : undefined;
    return { stroke: faded(stroke, weight), fill, width: weight === 1 ? 1.75 : 1.25, points: LONE_POINTS };
  }

  // Gaps in the events are hatched, never drawn as zero.
  #hatch(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = this.#colour("--hatch") || this.#colour("--text-muted");
    ctx.lineWidth = devicePixelRatio;
    for (const [began, ended] of this.#chart.gaps) {
      const left = Math.max(plot.valToPos(began, "x", true), bbox.left);
      const right = Math.min(plot.valToPos(ended ?? this.#chart.until, "x", true), bbox.left + bbox.width);
      this.#hatchBox(ctx, left, bbox.top, Math.max(right - left, 2 * devicePixelRatio), bbox.height);
    }
    ctx.restore();
  }

  #hatchBox(ctx, left, top, width, height) {
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.beginPath();
    for (let x = left - height; x < left + width; x += HATCH_STEP * devicePixelRatio) {
      ctx.moveTo(x, top + height);
      ctx.lineTo(x + height, top);
    }
    ctx.stroke();
    ctx.restore();
  }

  // The bucket that is still filling is paler, so that its short bar does not read as a fall.
  #veil(plot) {
    if (this.#chart.partial === null || this.#chart.kind !== "stacked") return;
    const { ctx, bbox } = plot;
    const left = Math.max(plot.valToPos(this.#chart.partial, "x", true), bbox.left);
    ctx.save();
    ctx.globalAlpha = 0.45;
    ctx.fillStyle = this.#colour("--surface");
    ctx.fillRect(left, bbox.top, bbox.left + bbox.width - left, bbox.height);
    ctx.restore();
  }

  // Restarts of workers are dashed lines; the legend names them at the cursor.
  #mark(plot) {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = this.#colour("--text-muted");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.beginPath();
    for (const [at] of this.#chart.marks) {
      const x = Math.round(plot.valToPos(at, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
    }
    ctx.stroke();
    ctx.restore();
  }

  #marked(from, until) {
    const words = this.#chart.marks.filter(([at]) => at >= from && at < until).map(([, text]) => text);
    return words.length ? ` · ${words.join(", ")}` : "";
  }

  #drawLegend() {
    const items = this.#chart.series.map(({ name, colour, weight }) => {
      const item = element("span", "item");
      const swatch = element("i", "swatch");
      swatch.style.background = `var(${colour})`;
      swatch.style.opacity = String(weight);
      item.append(swatch, element("span", "name", name), element("b", "value"));
      return item;
    });
    this.#legend.replaceChildren(...items, element("time", "when"));
  }

  #updateLegend(index) {
    const { series, at, step, unit, summary_of: summaryOf } = this.#chart;
    const here = index !== null && index !== undefined && at[index] !== undefined;
    this.#legend.querySelectorAll(".value").forEach((value, i) => {
      value.textContent = here ? UNITS[unit].full(series[i].values[index]) : UNITS[unit].full(series[i].summary);
    });
    this.#legend.querySelector(".when").textContent = here
      ? this.#moment(at[index], step) + this.#marked(at[index], at[index] + step)
      : summaryOf;
  }

  #moment(at, step) {
    const start = new Date(at * 1000);
    const day = { weekday: "short", day: "numeric", month: "short" };
    if (step >= 86400) return start.toLocaleDateString([], day);
    const time = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
    const far = Date.now() - start.getTime() > 20 * 3600e3 ? `${start.toLocaleDateString([], day)} ` : "";
    return far + start.toLocaleTimeString([], time);
  }

  #zoom(plot) {
    const { left, width } = plot.select;
    if (width < 8) return;
    const since = Math.floor(plot.posToVal(left, "x"));
    const until = Math.ceil(plot.posToVal(left + width, "x"));
    const url = new URL(location.href);
    url.searchParams.delete("range");
    url.searchParams.set("since", String(since));
    url.searchParams.set("until", String(until));
    location.assign(url);
  }

  #resize() {
    const width = this.clientWidth;
    if (this.#plot && width && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
  }
}

// The theme is an attribute of the root; colours on a canvas do not follow it.
const themes = new Set();
new MutationObserver(() => {
  for (const repaint of themes) repaint();
}).observe(document.documentElement, {
  attributes: true,
  attributeFilter: ["data-theme"],
});

customElements.define("time-chart", TimeChart);
