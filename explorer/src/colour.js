// Colours of values, each scale ever further from the paper in lightness, so that it is read without hues too: from blue
// to vermilion where one end is bad, viridis where none is; Okabe and Ito's hues for labels.

import { reach } from "./selection.js";

const BAD = {
  light: ["#82b1dc", "#7f9bcf", "#8480b8", "#96608f", "#a8455f", "#b83a2c", "#8f2500"],
  dark: ["#5b83b5", "#7585bd", "#9684c0", "#b982b4", "#dd8790", "#ff9057", "#ffc27a"],
};
const PLAIN = {
  light: ["#9bd93c", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154"],
  dark: ["#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"],
};
const HUES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5c00", "#3b2a73"],
  dark: ["#56b4e9", "#ff8f4d", "#2fc79a", "#e79ac4", "#f0b840", "#9fd0ff", "#f0e442", "#b7a6ff"],
};
const NONE = { light: "#b9b4a6", dark: "#596372" };
const OTHER = { light: "#8d8a82", dark: "#7d8694" };

const theme = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

// A column's values as colours: the end that is bad is the one that stands out.
export function shade(chart) {
  const stops = (chart.worst ? BAD : PLAIN)[theme()].map(channels);
  const none = NONE[theme()];
  const [low, high] = reach(chart);
  return (value) => {
    if (value === null || !Number.isFinite(value)) return none;
    const part = Math.max(0, Math.min(1, (value - low) / (high - low || 1)));
    const place = (chart.worst === "low" ? 1 - part : part) * (stops.length - 1);
    const i = Math.min(stops.length - 2, Math.floor(place));
    return `rgb(${stops[i].map((one, k) => Math.round(one + (stops[i + 1][k] - one) * (place - i))).join(" ")})`;
  };
}

// A column of labels: its most frequent eight have hues, the others share one.
export function categories(group) {
  const hues = HUES[theme()];
  const names = group.values.map(([name]) => name).filter((name) => name !== null).slice(0, hues.length);
  const key = (value) => (value === null || value === undefined ? null : names.includes(value) ? value : "\u0000other");
  const hue = (name) => (name === null ? NONE[theme()] : (hues[names.indexOf(name)] ?? OTHER[theme()]));
  return { names, key, hue };
}
