// The curves of trainings, drawn as they grow: one chart a stage and figure.

import { make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [320, 150, 44, 20, 8];
/** More points than this are thinned out: every second one goes. */
const MOST = 1000;

export class Curves {
  constructor(place) {
    this.place = place;
    this.place.replaceChildren();
    this.charts = new Map();
  }

  /** Takes the figures of a progress event, if it is a training's. */
  add(stage, progress) {
    if (progress.step === undefined) return;
    for (const [figure, name] of [["loss", "loss"], ["reward_margin", "reward margin"]]) {
      if (progress[figure] === undefined) continue;
      const key = `${stage} ${figure}`;
      if (!this.charts.has(key)) this.charts.set(key, new Chart(this.place, `${stage}: ${name}`, progress.steps));
      this.charts.get(key).add(progress.step, progress[figure]);
    }
  }
}

class Chart {
  constructor(place, name, steps) {
    this.name = name;
    this.steps = steps ?? 1;
    this.points = [];
    this.svg = node("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "curve" });
    place.append(make("figure", {}, make("figcaption", {}, name), this.svg));
  }

  add(step, value) {
    const last = this.points.at(-1);
    // A job that went on from a checkpoint takes some steps again.
    if (last && last[0] >= step) this.points = this.points.filter(([at]) => at < step);
    this.points.push([step, value]);
    if (this.points.length > MOST) this.points = this.points.filter((_, i, all) => i % 2 === 0 || i === all.length - 1);
    this.draw();
  }

  draw() {
    const values = this.points.map(([, value]) => value);
    let [low, high] = [Math.min(...values), Math.max(...values)];
    if (high - low < 1e-9) [low, high] = [low - 0.5, high + 0.5];
    const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / Math.max(this.steps, 1);
    const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low);
    const line = this.points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    const [step, value] = this.points.at(-1);
    this.svg.setAttribute("aria-label", `${this.name}: ${value.toPrecision(4)} at step ${step} of ${this.steps}`);
    this.svg.replaceChildren(
      node("path", { class: "axis", d: `M${LEFT} ${TOP}V${HEIGHT - BOTTOM}H${WIDTH - 8}` }),
      label(LEFT - 4, y(high) + 4, "end", short(high)), label(LEFT - 4, y(low) + 2, "end", short(low)),
      label(LEFT, HEIGHT - 6, "start", "0"), label(WIDTH - 8, HEIGHT - 6, "end", `${this.steps} steps`),
      node("polyline", { class: "line", points: line }),
      node("circle", { class: "end", cx: x(step), cy: y(value), r: 2.5 }));
  }
}

const short = (value) => (Math.abs(value) < 0.01 && value !== 0 ? value.toExponential(1) : value.toPrecision(3));

function node(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function label(x, y, anchor, text) {
  const element = node("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}
