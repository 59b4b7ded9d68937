// Filters, the list, which episode is shown, keys. Rows exist while they are in sight, however long the list is.

const ROW = 76;
const AROUND = 6;

class Viewer {
  constructor(root, store, facts) {
    this.root = root;
    this.store = store;
    this.facts = facts;
    this.found = [];
    this.current = null;
    this.other = null;
    root.replaceChildren(this.filters(), this.side(), this.detail = el("div", { cls: "detail" }), this.said = el("p", { cls: "hidden-text", attrs: { role: "status", "aria-live": "polite" } }));
    this.list.addEventListener("scroll", () => this.drawRows());
    addEventListener("resize", () => this.drawRows());
    this.list.addEventListener("keydown", (event) => this.arrow(event));
    document.addEventListener("keydown", (event) => this.key(event));
    this.readPlace();
    this.apply();
  }

  // Filters

  filters() {
    const { store } = this;
    const updates = store.columns.update;
    const first = updates.reduce((a, b) => Math.min(a, b), Infinity);
    const last = updates.reduce((a, b) => Math.max(a, b), 0);
    const has = (kind) => store.columns.kind.includes(kind);
    const choice = (name, label, options) => {
      const select = el("select", { name }, ...options.map(([value, text]) => el("option", { value }, text)));
      return el("label", {}, label, select);
    };
    const limit = (name, label, value, step, min, max) => el("input", { type: "number", name, value: String(value), step: String(step), min: String(min), max: String(max), attrs: { "aria-label": label } });
    this.form = el("form", { cls: "card filters", on: { submit: (event) => event.preventDefault() } },
      el("label", { cls: "grow" }, "Search in texts ( / )", el("input", { type: "search", name: "query", placeholder: "instruction, observation, action…" })),
      has(0) && has(1) ? choice("set", "Episodes", [["training", "training"], ["evaluation", "evaluation"], ["all", "both"]]) : null,
      choice("outcome", "Outcome", [["all", "all"], ["won", "won"], ["lost", "lost"], ["failed", "failed"]]),
      el("label", {}, "Score", el("span", { cls: "pair" }, limit("low", "lowest score", 0, 0.05, 0, 1), "to", limit("high", "highest score", 1, 0.05, 0, 1))),
      el("label", {}, "Update", el("span", { cls: "pair" }, limit("from", "first update", first, 1, first, last), "to", limit("to", "last update", last, 1, first, last))),
      choice("sort", "Order", [["first", "first update first"], ["last", "last update first"], ["lowest", "lowest score first"], ["highest", "highest score first"], ["misjudged", "most misjudged first"], ["return", "highest return first"]]),
      el("label", { cls: "check" }, el("input", { type: "checkbox", name: "again" }), "tasks played more than once"),
      el("button", { type: "reset" }, "Clear"));
    this.bounds = { first, last };
    const later = () => {
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.apply(), 120);
    };
    this.form.addEventListener("input", later);
    this.form.addEventListener("reset", () => setTimeout(() => this.apply()));
    return this.form;
  }

  readFilter() {
    const fields = this.form.elements;
    const value = (name, otherwise) => (fields[name] ? fields[name].value : otherwise);
    const bound = (name, otherwise) => {
      const text = value(name, "").trim();
      return text === "" || !Number.isFinite(Number(text)) ? otherwise : Number(text);
    };
    return {
      query: value("query", "").trim().toLowerCase(),
      set: value("set", "all"),
      outcome: value("outcome", "all"),
      low: bound("low", 0),
      high: bound("high", 1),
      from: bound("from", this.bounds.first),
      to: bound("to", this.bounds.last),
      sort: value("sort", "first"),
      again: fields.again.checked,
    };
  }

  apply() {
    const filter = this.readFilter();
    this.found = this.store.find(filter);
    const isNew = this.query === undefined || filter.query !== this.query;
    this.query = filter.query;
    this.tell(filter);
    this.items.style.height = `${this.found.length * ROW}px`;
    this.list.scrollTop = 0;
    this.none.hidden = this.found.length > 0;
    const stays = this.current !== null && this.found.includes(this.current);
    if (!stays) this.open(this.found.length ? this.found[0] : null);
    else if (isNew) this.show();
    else this.detail.replaceChild(this.bar(), this.detail.firstChild); // its place in the list is another one
    if (this.span === undefined) this.reveal(); // one that the address named
    this.drawRows(true);
  }

  tell(filter) {
    const total = this.store.length;
    const count = this.found.length;
    const searched = filter.query ? this.store.columns.complete.filter(Boolean).length : total;
    const lacking = searched < total ? ` (${number(total - searched)} have no texts to search)` : "";
    this.count.textContent = count === total ? `${number(total)} episodes` : `${number(count)} of ${number(total)} episodes${lacking}`;
  }

  // The list

  side() {
    this.count = el("p", { cls: "count", attrs: { role: "status" } });
    this.items = el("ol");
    this.none = el("p", { cls: "empty", hidden: true }, "No episode matches. ", el("button", { type: "button", cls: "link", on: { click: () => this.form.reset() } }, "Clear the filters"));
    this.list = el("div", { cls: "list", attrs: { role: "group", "aria-label": "Episodes" } }, this.none, this.items);
    return el("div", { cls: "card list-side" }, this.count, this.list);
  }

  drawRows(anew) {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - AROUND);
    const last = Math.min(this.found.length, Math.ceil((this.list.scrollTop + (this.list.clientHeight || 700)) / ROW) + AROUND);
    const span = `${first} ${last}`;
    if (!anew && span === this.span) return;
    this.span = span;
    const focused = this.items.contains(document.activeElement) ? document.activeElement.dataset.at : null;
    const rows = [];
    for (let place = first; place < last; place += 1) rows.push(this.row(place));
    this.items.replaceChildren(...rows);
    const again = focused === null ? null : this.items.querySelector(`[data-at="${focused}"]`);
    if (again) again.focus({ preventScroll: true });
  }

  row(place) {
    const at = this.found[place];
    const episode = this.store.episode(at);
    const strip = el("span", { cls: "strip", attrs: { "aria-hidden": "true" } });
    for (const score of this.store.scores(at).slice(0, 64)) strip.append(score === null ? el("span") : paint(el("span"), score));
    // A long instruction begins alike in every episode, with the descriptions of tools; the row of the dataset does not.
    const told = episode.instruction.length > 240 ? episode.taskLabel || episode.instruction : episode.instruction;
    const about = putText(el("span", { cls: "task" }), (told || episode.taskLabel || episode.error || "no instruction").slice(0, 160));
    const button = el("button", {
      type: "button", cls: "row", attrs: { "data-at": String(at), "aria-current": String(at === this.current) },
      on: { click: () => { this.open(at); this.drawRows(true); this.toDetail(); } },
    }, el("span", { cls: "what" }, episode.evaluation ? `Eval ${episode.update}` : `Update ${episode.update}`), outcomeTag(episode.outcome), el("span"), scoreChip(episode.score, "mean hindsight score"), about, strip);
    const item = el("li", { attrs: { "aria-setsize": String(this.found.length), "aria-posinset": String(place + 1) } }, button);
    item.style.top = `${place * ROW}px`;
    return item;
  }

  /** Scrolls the list, not the page, so that the present episode is in sight. */
  reveal() {
    const place = this.found.indexOf(this.current);
    if (place < 0) return;
    const { scrollTop, clientHeight } = this.list;
    if (place * ROW < scrollTop) this.list.scrollTop = place * ROW;
    else if ((place + 1) * ROW > scrollTop + clientHeight) this.list.scrollTop = (place + 1) * ROW - clientHeight;
  }

  /** On a phone the episode is below the list. */
  toDetail() {
    if (matchMedia("(max-width: 860px)").matches) this.detail.scrollIntoView({ block: "start" });
  }

  // What is shown

  open(at, other) {
    this.current = at;
    this.other = other === undefined ? null : other;
    this.show();
    this.keepPlace();
  }

  move(by) {
    if (!this.found.length) return;
    const place = this.found.indexOf(this.current);
    const next = Math.min(Math.max(place + by, 0), this.found.length - 1);
    if (next === place) return;
    this.open(this.found[next]);
    this.reveal();
    this.drawRows(true);
    // A new episode begins at its beginning, where one could see the last one's.
    if (this.detail.getBoundingClientRect().top < 0) this.detail.scrollIntoView({ block: "start" });
  }

  compare(other) {
    this.open(this.current, other);
  }

  show() {
    const { detail, store } = this;
    this.root.classList.toggle("comparing", this.other !== null);
    detail.replaceChildren();
    if (this.current === null) {
      detail.append(el("p", { cls: "card empty" }, "Nothing to show."));
      this.said.textContent = "No episode matches.";
      return;
    }
    const context = { query: this.query, ...this.facts };
    detail.append(this.bar());
    if (this.other === null) oneEpisode(detail, store, this.current, context);
    else twoEpisodes(detail, store, this.current, this.other, context);
    const episode = store.episode(this.current);
    const place = this.found.indexOf(this.current) + 1;
    this.said.textContent = `${place ? `Episode ${place} of ${this.found.length}: ` : ""}${playedIn(episode)}, ${episode.outcome}${episode.score === null ? "" : `, score ${decimal(episode.score)}`}`;
  }

  bar() {
    const place = this.found.indexOf(this.current);
    const button = (text, title, disabled, click) => el("button", { type: "button", title, disabled, on: { click } }, text);
    if (this.other !== null) {
      return el("div", { cls: "bar" }, el("strong", {}, "Two episodes of one task"), el("span", { cls: "spacer" }), this.chooser(), button("Close (Esc)", "back to one episode", false, () => this.compare(null)));
    }
    return el("div", { cls: "bar" },
      button("← Previous", "k", place <= 0, () => this.move(-1)),
      button("Next →", "j", place < 0 || place >= this.found.length - 1, () => this.move(1)),
      el("span", { cls: "spacer" }), this.chooser());
  }

  chooser() {
    const others = this.store.siblings(this.current);
    if (!others.length) return el("span", { cls: "compare-with" }, "This task was played once.");
    const options = others.map((at) => {
      const episode = this.store.episode(at);
      const score = episode.score === null ? "" : `, score ${decimal(episode.score)}`;
      return el("option", { value: String(at) }, `${playedIn(episode)}: ${episode.outcome}${score} (episode ${number(at + 1)})`);
    });
    const select = el("select", { name: "other", on: { change: (event) => this.compare(event.target.value === "" ? null : Number(event.target.value)) } },
      el("option", { value: "" }, `choose one of ${number(others.length)}`), ...options);
    select.value = this.other === null ? "" : String(this.other);
    return el("label", { cls: "compare-with" }, "Compare with ", select);
  }

  /** The episode of the same task that was played farthest away. */
  compareFarthest() {
    if (this.current === null) return;
    const { update, kind } = this.store.columns;
    const far = (at) => Math.abs(update[at] - update[this.current]) + (kind[at] === kind[this.current] ? 0.5 : 0);
    const others = this.store.siblings(this.current);
    if (others.length) this.compare(others.reduce((best, at) => (far(at) > far(best) ? at : best)));
    else this.said.textContent = "This task was played once.";
  }

  // Keys, and the place in the address

  arrow(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.move(Number.isFinite(by) ? by : by * 1 > 0 ? this.found.length : -this.found.length);
    const row = this.items.querySelector(`[data-at="${this.current}"]`);
    if (row) row.focus({ preventScroll: true });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName || "");
    if (event.key === "Escape") {
      if (typing && event.target.name === "query") {
        event.target.value = "";
        event.target.blur();
        this.apply();
      } else if (this.other !== null) this.compare(null);
      return;
    }
    if (typing) return;
    const act = { j: () => this.move(1), k: () => this.move(-1), c: () => (this.other === null ? this.compareFarthest() : this.compare(null)) }[event.key];
    if (act) act();
    else if (event.key === "/") {
      event.preventDefault();
      this.form.elements.query.focus();
      this.form.elements.query.select();
    }
  }

  keepPlace() {
    if (!this.placed) { this.placed = true; return; } // the first one is no choice
    const hash = this.current === null ? "#episodes" : `#episode=${this.current + 1}${this.other === null ? "" : `&with=${this.other + 1}`}`;
    try {
      history.replaceState(null, "", hash);
    } catch { /* an address that may not change is no reason to stop */ }
  }

  readPlace() {
    const match = /^#episode=(\d+)(?:&with=(\d+))?$/.exec(location.hash);
    if (!match) return;
    const [at, other] = [Number(match[1]) - 1, match[2] ? Number(match[2]) - 1 : null];
    if (at < 0 || at >= this.store.length) return;
    if (this.form.elements.set) this.form.elements.set.value = "all";
    this.current = at;
    this.other = other !== null && this.store.siblings(at).includes(other) ? other : null;
    requestAnimationFrame(() => this.root.scrollIntoView());
  }
}
