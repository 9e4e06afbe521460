"use strict";
// Everything stands on the page without this; it sorts tables, reads charts and filters images.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  const start = () => {
    // Tables: a button in each head; numbers by value, what is none last.
    const value = (cell) => {
      const text = cell.textContent.trim();
      const data = cell.querySelector("data");
      const number = parseFloat(data ? data.value : text.replace(/,/g, "").replace("−", "-"));
      return { text, number };
    };
    const compare = (column, sign, numeric) => (one, other) => {
      const [a, b] = [value(one.cells[column]), value(other.cells[column])];
      if (!numeric) return sign * a.text.localeCompare(b.text);
      if (Number.isNaN(a.number) || Number.isNaN(b.number)) return Number.isNaN(a.number) - Number.isNaN(b.number);
      return sign * (a.number - b.number);
    };
    for (const table of all("table.sortable")) {
      const heads = all("thead th", table);
      heads.forEach((head, column) => {
        const button = document.createElement("button");
        button.type = "button";
        button.append(...head.childNodes);
        head.append(button);
        button.addEventListener("click", () => {
          const up = head.getAttribute("aria-sort") !== "ascending";
          heads.forEach((other) => other.removeAttribute("aria-sort"));
          head.setAttribute("aria-sort", up ? "ascending" : "descending");
          const body = table.tBodies[0];
          const numeric = head.classList.contains("number");
          body.append(...[...body.rows].sort(compare(column, up ? 1 : -1, numeric)));
        });
      });
    }

    // Charts: what is shown.
    const toggle = (box, act) => {
      // A browser that goes back remembers boxes, not what they did.
      act(box.checked);
      box.addEventListener("change", () => act(box.checked));
    };
    for (const chart of all(".chart")) {
      for (const box of all("[data-line]", chart)) {
        toggle(box, (on) => {
          all(`[data-series="${box.dataset.line}"]`, chart).forEach((line) => line.classList.toggle("off", !on));
          all(".panel", chart).forEach((panel) => panel.dispatchEvent(new Event("reread")));
        });
      }
      for (const box of all("[data-score]", chart)) {
        toggle(box, (on) =>
          all(`[data-score-row="${box.dataset.score}"]`, chart).forEach((row) => row.classList.toggle("off", !on)));
      }
      for (const box of all("[data-bands]", chart)) toggle(box, (on) => chart.classList.toggle("no-bands", !on));
      for (const box of all("[data-clean]", chart)) toggle(box, (on) => chart.classList.toggle("no-clean", !on));
    }

    // Curves: the values at a radius, by a slider or where the pointer is.
    for (const panel of all(".panel")) {
      const [svg, slider, reading] = ["svg", "input", "output"].map((name) => panel.querySelector(name));
      const cursor = svg.querySelector(".cursor");
      const [largest, left, right] = ["largest", "left", "right"].map((name) => parseFloat(svg.dataset[name]));
      const step = parseFloat(slider.step);
      const read = () => {
        const place = Math.round(slider.value / step);
        const x = left + (right - left) * slider.value / largest;
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
        cursor.setAttribute("visibility", "visible");
        const lines = all(".series:not(.off)", svg).map((series) => {
          const line = document.createElement("div");
          const mark = document.createElement("i");
          const text = document.createElement("span");
          line.className = [...series.classList].find((name) => /^c\d$/.test(name));
          text.textContent = `${series.dataset.label}: ${series.dataset.values.split("|")[place]}`;
          line.append(mark, text);
          return line;
        });
        const head = document.createElement("div");
        head.textContent = `at ε = ${slider.value}`;
        reading.replaceChildren(head, ...lines);
      };
      slider.addEventListener("input", read);
      panel.addEventListener("reread", () => { if (reading.hasChildNodes()) read(); });
      svg.addEventListener("pointermove", (event) => {
        const box = svg.getBoundingClientRect();
        const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
        const radius = largest * (x - left) / (right - left);
        slider.value = Math.min(Math.max(radius, 0), largest);
        read();
      });
    }

    // Images: which are shown, in what order.
    const cards = document.querySelector(".cards");
    const [state, run, order, count] = ["state", "run", "order", "count"].map((id) => document.getElementById(id));
    if (cards && state) {
      const every = [...cards.children].map((card) => ({ card, entries: all("li", card) }));
      const radius = ({ entries }) => {
        const chosen = entries.filter((entry) => !run || !run.value || entry.dataset.run === run.value);
        return Math.max(-1, ...chosen.map((entry) => parseFloat(entry.dataset.radius)).filter((one) => !Number.isNaN(one)));
      };
      const filter = () => {
        let shown = 0;
        for (const { card, entries } of every) {
          card.hidden = !entries.some((entry) =>
            (!state.value || entry.dataset.state === state.value) && (!run || !run.value || entry.dataset.run === run.value));
          shown += !card.hidden;
        }
        count.textContent = shown === every.length ? `${shown} images` : `${shown} of ${every.length} images`;
      };
      const sort = () => {
        const sign = order.value === "down" ? -1 : 1;
        const sorted = order.value === "index" ? every : [...every].sort((a, b) => sign * (radius(a) - radius(b)));
        cards.append(...sorted.map(({ card }) => card));
      };
      state.addEventListener("change", filter);
      order.addEventListener("change", sort);
      if (run) run.addEventListener("change", () => { filter(); sort(); });
      filter();
      sort();
    }
  };
  start();
  // A page that is served takes in new parts.
  document.addEventListener("renewed", start);

  // On paper nothing can be opened.
  window.addEventListener("beforeprint", () => all("details").forEach((part) => { part.open = true; }));
})();
