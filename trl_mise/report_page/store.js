// The episodes: unpacked once, put together from their columns when they are looked at.

async function unpack(packed) {
  if (typeof DecompressionStream === "undefined") {
    throw new Error("This browser cannot unpack the episodes: it has no DecompressionStream (Chrome and Edge from 80, Firefox from 113, Safari from 16.4 do). Everything above is complete.");
  }
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(packed) : fromBase64(packed);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function fromBase64(packed) {
  const binary = atob(packed);
  const bytes = new Uint8Array(binary.length);
  for (let k = 0; k < bytes.length; k += 1) bytes[k] = binary.charCodeAt(k);
  return bytes;
}

class Store {
  constructor(values) {
    this.columns = values.episodes;
    this.stepColumns = values.steps;
    this.tasks = values.tasks;
    this.pieces = values.pieces;
    this.encoded = values.texts;
    this.joined = new Array(this.encoded.length);
    this.length = this.columns.update.length;
    this.starts = [0];
    for (const length of this.columns.length) this.starts.push(this.starts[this.starts.length - 1] + length);
    this.ofTask = new Map();
    this.columns.task.forEach((task, at) => {
      if (!this.ofTask.has(task)) this.ofTask.set(task, []);
      this.ofTask.get(task).push(at);
    });
  }

  text(at) {
    if (this.joined[at] === undefined) this.joined[at] = this.encoded[at].map((piece) => this.pieces[piece]).join("");
    return this.joined[at];
  }

  /** Everything about an episode but its steps. */
  episode(at) {
    const of = (name) => this.columns[name][at];
    return {
      at,
      evaluation: of("kind") === 1,
      split: this.text(of("split")),
      update: of("update"),
      task: of("task"),
      taskLabel: this.tasks[of("task")],
      seed: of("seed"),
      instruction: this.text(of("instruction")),
      final: this.text(of("final")),
      return: of("return"),
      success: of("success") === 1,
      stop: this.text(of("stop")),
      error: this.text(of("error")),
      score: of("score") === null ? null : of("score") / 1000,
      length: of("length"),
      complete: of("complete") === 1,
      outcome: this.outcome(at),
    };
  }

  outcome(at) {
    if (this.columns.success[at]) return "won";
    return this.text(this.columns.stop[at]) === "env_error" ? "failed" : "lost";
  }

  step(at, k) {
    const place = this.starts[at] + k;
    const of = (name, missing) => (this.stepColumns[name] ? this.stepColumns[name][place] : missing);
    const thousandths = (value) => (value === null ? null : value / 1000);
    return {
      observation: this.text(of("observation", 0)),
      action: this.text(of("action", 0)),
      evaluation: this.text(of("evaluation", 0)),
      reward: of("reward", 0),
      invalid: of("invalid", 0) === 1,
      score: thousandths(of("score", null)),
      shaping: thousandths(of("shaping", null)),
      advantage: thousandths(of("advantage", null)),
      probs: this.stepColumns.probs.map((column) => thousandths(column[place])).filter((p) => p !== null),
    };
  }

  steps(at) {
    return Array.from({ length: this.columns.length[at] }, (_, k) => this.step(at, k));
  }

  scores(at) {
    const column = this.stepColumns.score;
    return Array.from({ length: this.columns.length[at] }, (_, k) => {
      const value = column ? column[this.starts[at] + k] : null;
      return value === null ? null : value / 1000;
    });
  }

  /** Other episodes of the same task, in the order of the updates. */
  siblings(at) {
    const others = this.ofTask.get(this.columns.task[at]).filter((other) => other !== at);
    return others.sort((a, b) => this.columns.update[a] - this.columns.update[b] || a - b);
  }

  /** Which texts hold the words; `query` in lower case. */
  textsWith(query) {
    return this.encoded.map((_, at) => this.text(at).toLowerCase().includes(query));
  }

  /** Numbers of the episodes that a filter lets through, in the order that it asks for. */
  find(filter) {
    const { kind, update, score, length, task } = this.columns;
    const found = [];
    const has = filter.query ? this.textsWith(filter.query) : null;
    const taskHas = filter.query ? this.tasks.map((label) => label.toLowerCase().includes(filter.query)) : null;
    const bounded = filter.low > 0 || filter.high < 1;
    for (let at = 0; at < this.length; at += 1) {
      if (filter.set !== "all" && kind[at] !== (filter.set === "evaluation" ? 1 : 0)) continue;
      if (filter.outcome !== "all" && this.outcome(at) !== filter.outcome) continue;
      if (update[at] < filter.from || update[at] > filter.to) continue;
      if (bounded && (score[at] === null || score[at] < filter.low * 1000 - 0.5 || score[at] > filter.high * 1000 + 0.5)) continue;
      if (filter.again && this.ofTask.get(task[at]).length < 2) continue;
      if (has && !taskHas[task[at]] && !this.holds(at, has)) continue;
      found.push(at);
    }
    return this.sorted(found, filter.sort);
  }

  holds(at, has) {
    const { instruction, final, error, stop } = this.columns;
    if (has[instruction[at]] || has[final[at]] || has[error[at]] || has[stop[at]]) return true;
    const { observation, action, evaluation } = this.stepColumns;
    for (let place = this.starts[at]; place < this.starts[at + 1]; place += 1) {
      if (has[observation[place]] || has[action[place]] || (evaluation && has[evaluation[place]])) return true;
    }
    return false;
  }

  sorted(found, order) {
    const { update, score, return: returns, success } = this.columns;
    const last = (value) => (value === null ? Infinity : value);
    const wrong = (at) => (score[at] === null ? Infinity : success[at] ? score[at] : 1000 - score[at]);
    const orders = {
      first: (a, b) => update[a] - update[b],
      last: (a, b) => update[b] - update[a],
      lowest: (a, b) => last(score[a]) - last(score[b]),
      highest: (a, b) => last(score[a] === null ? null : -score[a]) - last(score[b] === null ? null : -score[b]),
      misjudged: (a, b) => wrong(a) - wrong(b),
      return: (a, b) => returns[b] - returns[a],
    };
    const compare = (a, b) => orders[order](a, b);
    return found.sort((a, b) => { const c = compare(a, b); return c || a - b; });
  }
}
