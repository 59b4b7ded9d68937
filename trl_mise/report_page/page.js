// Small tools of the page. Text gets onto it through text nodes alone: nothing that a run said is ever read as HTML.

const byId = (id) => document.getElementById(id);

/** An element with a class, properties, and children (nodes or texts). */
function el(tag, options, ...children) {
  const node = document.createElement(tag);
  const { cls, on, attrs, ...properties } = options || {};
  if (cls) node.className = cls;
  Object.assign(node, properties);
  for (const [name, value] of Object.entries(attrs || {})) node.setAttribute(name, value);
  for (const [name, listener] of Object.entries(on || {})) node.addEventListener(name, listener);
  for (const child of children) if (child !== null && child !== undefined) node.append(child);
  return node;
}

const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Characters that are not seen, or that change what is seen around them: shown by their numbers.
const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** Puts a text into `parent`: hidden characters by number, the places where `query` was found marked. */
function putText(parent, text, query) {
  let from = 0;
  for (const match of text.matchAll(HIDDEN)) {
    putMarked(parent, text.slice(from, match.index), query);
    const code = match[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0");
    parent.append(el("span", { cls: "control", title: "a character that is not shown as it is" }, `⟨U+${code}⟩`));
    from = match.index + match[0].length;
  }
  putMarked(parent, text.slice(from), query);
  return parent;
}

function putMarked(parent, text, query) {
  if (!query) {
    if (text) parent.append(text);
    return;
  }
  const folded = text.toLowerCase();
  // A text whose lower case has another length cannot be marked by place; it is shown without.
  let from = 0;
  let at = folded.length === text.length ? folded.indexOf(query) : -1;
  while (at >= 0) {
    parent.append(text.slice(from, at), el("mark", {}, text.slice(at, at + query.length)));
    from = at + query.length;
    at = folded.indexOf(query, from);
  }
  parent.append(text.slice(from));
}

const SHOWN_AT_FIRST = 900;
const SHOWN_LINES = 14;
const SHOWN_MORE = 40000;

/** A block of text; the end of a long one comes when asked for, a piece at a time. */
function textBlock(cls, text, query) {
  const block = el("div", { cls: `${cls} raw`, dir: "auto" });
  let end = text.length > SHOWN_AT_FIRST * 1.3 ? SHOWN_AT_FIRST : text.length;
  const lines = text.slice(0, end).split("\n");
  if (lines.length > SHOWN_LINES + 4) end = lines.slice(0, SHOWN_LINES).join("\n").length;
  const at = query ? text.toLowerCase().indexOf(query) : -1;
  if (at >= end) end = Math.min(text.length, at + 300);
  end = Math.min(end, SHOWN_MORE);
  const body = el("span");
  putText(body, text.slice(0, end), query);
  block.append(body);
  if (end < text.length) {
    const more = el("button", { type: "button", cls: "link" });
    const label = () => { more.textContent = `Show ${end + SHOWN_MORE < text.length ? "more" : "all"} (${number(text.length - end)} characters left)`; };
    more.addEventListener("click", () => {
      const next = Math.min(text.length, end + SHOWN_MORE);
      putText(body, text.slice(end, next), query);
      end = next;
      if (end >= text.length) more.remove();
      else label();
    });
    label();
    block.append(el("div", {}, more));
  }
  return block;
}

const number = (value) => value.toLocaleString("en-US");
const decimal = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits === undefined ? 2 : digits));

/** `+0.25`, `−0.25`, `0.00`. */
function signed(value, digits) {
  const text = decimal(Math.abs(value), digits);
  return /[1-9]/.test(text) ? `${value < 0 ? "−" : "+"}${text}` : text;
}

// Colours of scores: from one hue over grey to another one, told apart by the colour-blind; the number stands beside.

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

let ramp = [];
function readRamp() {
  ramp = [0, 1, 2, 3, 4].map((k) => rgb(variable(`--score-${k}`)));
}

/** Background and ink for a score in [0, 1]. */
function scoreColour(score) {
  const at = Math.min(Math.max(score, 0), 1) * 4;
  const low = Math.min(Math.floor(at), 3);
  const mixed = ramp[low].map((value, k) => Math.round(value + (ramp[low + 1][k] - value) * (at - low)));
  return { background: `rgb(${mixed})`, ink: inkOn(mixed) };
}

function luminance(colour) {
  const [r, g, b] = colour.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Black and white: with them, and with no softer pair, one of the two can be read on any colour (contrast 4.5).
const inkOn = (colour) => (luminance(colour) > 0.179 ? "#000000" : "#ffffff");

function paint(node, score) {
  const { background, ink } = scoreColour(score);
  node.style.background = background;
  node.style.color = ink;
  node.dataset.score = score;
  return node;
}

/** When the screen turns dark or light, or paper is asked for. */
function repaint() {
  readRamp();
  for (const node of document.querySelectorAll("[data-score]")) paint(node, Number(node.dataset.score));
}

function scoreChip(score, label) {
  if (score === null) return el("span", { cls: "score none", title: "no hindsight score" }, "–");
  return paint(el("span", { cls: "score", title: label || "hindsight score" }, decimal(score)), score);
}
