// One episode: head, timeline of its steps, and the steps themselves.

const PLACED = { advantage: "the step's advantage", return: "the step's reward" };

const outcomeTag = (outcome) => el("span", { cls: `tag tag-${outcome}` }, { won: "✓ won", lost: "✗ lost", failed: "! failed" }[outcome]);

const playedIn = (episode) => (episode.evaluation ? `Evaluation${evaluationName(episode.split)} after update ${episode.update}` : `Update ${episode.update}`);

function evaluationName(split) {
  const name = split.replace(/^eval_?/, "");
  return name ? ` “${name}”` : "";
}

function property(name, value) {
  return el("span", {}, `${name} `, putText(el("b"), String(value)));
}

function headCard(episode, steps, context) {
  const given = steps.filter((step) => step.shaping !== null).map((step) => step.shaping);
  const properties = el("div", { cls: "properties" },
    property("return", Number(episode.return.toPrecision(4))),
    property("steps", episode.length),
    property("ended", episode.stop.replaceAll("_", " ")),
    given.length ? property("added by hindsight", signed(given.reduce((a, b) => a + b, 0))) : null,
    property("episode", number(episode.at + 1)));
  const task = el("div", { cls: "properties" }, putText(el("span", { cls: "raw" }, "task "), episode.taskLabel || (episode.seed === null ? "not recorded" : `seed: ${episode.seed}`), context.query));
  return el("div", { cls: "card head" },
    el("div", { cls: "headline" }, context.side ? el("span", { cls: "side" }, context.side) : null, el("h3", {}, playedIn(episode)), outcomeTag(episode.outcome), episode.score === null ? null : scoreChip(episode.score, "mean hindsight score")),
    episode.instruction ? textBlock("instruction", episode.instruction, context.query) : null,
    properties, task,
    episode.error ? el("div", { cls: "banner bad" }, putText(el("pre", { cls: "raw" }), episode.error, context.query)) : null,
    episode.complete ? null : el("p", { cls: "note" }, "Only the numbers of this episode are here: its texts were left out to keep the file small."),
    steps.length ? timeline(steps, context) : el("p", { cls: "note" }, "This episode has no step."));
}

/** A row for each kind of credit, a column for each step. */
function timeline(steps, context) {
  const head = el("tr", {}, el("th", { scope: "row" }, "Step"));
  steps.forEach((_, k) => head.append(el("td", {}, el("button", {
    type: "button", title: `go to step ${k + 1}`, on: { click: () => context.goTo(k) },
  }, String(k + 1)))));
  const of = (name) => steps.map((step) => step[name]);
  const coloured = (cell, value) => { paint(cell, value); cell.append(decimal(value)); };
  const rows = [
    ["Score", of("score"), coloured],
    ["Environment", of("reward"), tint(of("reward"))],
    ["Hindsight added", of("shaping"), tint(of("shaping"))],
    ["Final advantage", of("advantage"), tint(of("advantage"))],
  ];
  const known = rows.filter(([, values]) => values.some((value) => value !== null));
  const lacking = rows.filter((row) => !known.includes(row)).map(([name]) => name.toLowerCase());
  const body = el("tbody", {}, ...known.map(([name, values, fill]) => timelineRow(name, values, fill)));
  const table = el("table", {}, el("caption", { cls: "hidden-text" }, "Credit of every step"), el("thead", {}, head), body);
  return el("div", {}, el("div", { cls: "timeline" }, table), timelineLegend(known.map(([name]) => name), lacking, context));
}

function timelineLegend(known, lacking, context) {
  const told = el("p", { cls: "legend" });
  if (known.includes("Score")) {
    const ramp = el("span", { cls: "ramp", attrs: { "aria-hidden": "true" } });
    for (let k = 0; k <= 10; k += 1) ramp.append(paint(el("span"), k / 10));
    told.append(el("span", {}, "score: bad 0", ramp, "1 good"));
  }
  if (known.length > 2) told.append(el("span", {}, "other rows: orange below 0, blue above, strongest at the episode's largest"));
  if (known.includes("Hindsight added") && PLACED[context.placement]) told.append(el("span", {}, `hindsight was added to ${PLACED[context.placement]}`));
  if (lacking.length) told.append(el("span", {}, `not recorded: ${lacking.join(", ")}`));
  return told;
}

function timelineRow(name, values, fill) {
  const row = el("tr", {}, el("th", { scope: "row" }, name));
  for (const value of values) {
    const cell = el("td");
    if (value === null) cell.append("–");
    else fill(cell, value);
    row.append(cell);
  }
  return row;
}

/** Colours numbers by their sign, as strongly as they are large among the others. */
function tint(values) {
  const most = Math.max(...values.map((value) => Math.abs(value || 0)), 1e-9);
  const digits = most < 0.1 ? 3 : 2;
  return (cell, value) => {
    if (value) paint(cell, 0.5 + 0.5 * (value / most) * 0.8);
    cell.append(value ? signed(value, digits) : "0");
  };
}

/** The judge's distribution: a bar for the eye, words and numbers beside it. */
function verdictBar(probs, context) {
  const bar = el("span", { cls: "probs", attrs: { "aria-hidden": "true" } });
  const told = [];
  probs.forEach((p, k) => {
    const utility = context.utilities ? context.utilities[k] : 1 - k / Math.max(probs.length - 1, 1);
    const part = paint(el("span"), utility);
    part.style.width = `${100 * p}%`;
    bar.append(part);
    told.push(`${context.verdicts[k]} ${decimal(p)}`);
  });
  return putText(el("span", { cls: "verdict" }, bar), told.join(" · "));
}

function stepCard(step, k, context) {
  const gutter = el("span", { cls: "gutter", attrs: { "aria-hidden": "true" } });
  if (step.score !== null) paint(gutter, step.score);
  const figures = el("span", { cls: "figures" });
  if (step.reward) figures.append("reward ", el("b", {}, signed(step.reward)), " ");
  if (step.shaping !== null) figures.append("hindsight ", el("b", { title: `added to ${PLACED[context.placement] || "the step"}` }, signed(step.shaping, 3)), " ");
  if (step.advantage !== null) figures.append("advantage ", el("b", {}, signed(step.advantage)));
  const action = el("div", { cls: "action raw", dir: "auto" });
  if (step.action) putText(action, step.action, context.query);
  else action.append("(no text)");
  if (context.differs) action.classList.add("other-action");
  return el("div", { cls: "card step", attrs: { "data-step": String(k) } },
    gutter,
    el("div", { cls: "step-head" },
      el("span", { cls: "number" }, `Step ${k + 1}`),
      context.judged ? scoreChip(step.score) : null,
      step.probs.length ? verdictBar(step.probs, context) : null,
      step.invalid ? el("span", { cls: "tag tag-warn" }, "not understood") : null,
      context.differs ? el("span", { cls: "tag tag-warn" }, "other action") : null,
      figures),
    step.observation ? el("p", { cls: "what-was" }, "Observation") : null,
    step.observation ? textBlock("observation", step.observation, context.query) : null,
    el("p", { cls: "what-was" }, "Action"),
    action,
    step.evaluation ? el("p", { cls: "what-was" }, "The judge wrote") : null,
    step.evaluation ? textBlock("evaluation", step.evaluation, context.query) : null);
}

function finalCard(episode, context) {
  if (!episode.final) return null;
  return el("div", { cls: "card final" }, el("p", { cls: "what-was" }, "In the end"), textBlock("observation", episode.final, context.query));
}

/** Scrolls to a step; at once for those who want no motion. */
function goToStep(root, k) {
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const found = root.querySelector(`[data-step="${k}"]`);
  if (found) found.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
}

function oneEpisode(root, store, at, context) {
  const episode = store.episode(at);
  const steps = store.steps(at);
  const own = { ...context, judged: episode.score !== null, goTo: (k) => goToStep(root, k) };
  const list = el("ol", { cls: "steps" });
  steps.forEach((step, k) => list.append(el("li", {}, stepCard(step, k, own))));
  root.append(headCard(episode, steps, own), list);
  const final = finalCard(episode, own);
  if (final) root.append(final);
}

/** Two episodes of one task, step beside step. */
function twoEpisodes(root, store, at, other, context) {
  const pair = [at, other].map((one) => ({ episode: store.episode(one), steps: store.steps(one) }));
  const grid = el("div", { cls: "two" });
  pair.forEach(({ episode, steps }, k) => {
    grid.append(headCard(episode, steps, { ...context, side: "AB"[k], goTo: (step) => goToStep(root, step) }));
  });
  const longest = Math.max(pair[0].steps.length, pair[1].steps.length);
  let parted = false;
  for (let k = 0; k < longest; k += 1) {
    const [a, b] = pair.map(({ steps }) => steps[k]);
    const differs = !a || !b || a.action !== b.action;
    if (differs && !parted) {
      parted = true;
      grid.append(el("p", { cls: "differs" }, k ? `the same until here; step ${k + 1} differs` : "they differ from the first step"));
    }
    for (const [side, step] of [["A", a], ["B", b]]) {
      grid.append(step ? stepCard(step, k, { ...context, judged: pair.some(({ episode }) => episode.score !== null), differs: differs && Boolean(a && b) }) : el("div", { cls: "card nothing" }, `${side} has ended`));
    }
  }
  if (!parted) grid.append(el("p", { cls: "note" }, "Both took the same actions."));
  for (const { episode } of pair) grid.append(finalCard(episode, context) || el("div"));
  root.append(grid);
}
