"use strict";
// Asks how far the runs are, and takes in a new report without losing what the reader did on this page.
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const strip = document.getElementById("live");
  let { version } = strip.dataset;

  // Parts of two pages are the same if they are called the same.
  const text = (part) => (part ? part.textContent : "");
  const named = (part) => {
    const around = text(part.closest("table")?.caption ?? part.closest(".panel")?.querySelector("figcaption"));
    const own = part.id || part.getAttribute("aria-label") || text(part.closest("label"))
      || text(part.querySelector(":scope > summary, :scope > h3, :scope > figcaption")) || text(part);
    return [part.closest("section")?.id, part.tagName, around, own].join("\n");
  };
  const found = (selector, name) => all(selector).find((part) => named(part) === name);
  const option = (one) => one.text.replace(/^\d+: /, "");

  // What the reader did, by the selector of its parts: how to tell it and how to do it again.
  const before = {
    details: [(part) => part.open, (part, open) => { part.open = open; }],
    "input[type=checkbox]": [
      (box) => (box.checked === box.defaultChecked ? undefined : box.checked),
      (box, checked) => { box.checked = checked; }],
    select: [
      (list) => (list.selectedIndex > 0 ? option(list.options[list.selectedIndex]) : undefined),
      (list, chosen) => { list.selectedIndex = Math.max(0, [...list.options].findIndex((one) => option(one) === chosen)); }],
  };
  const after = {
    "input[type=range]": [
      (slider) => (slider.closest(".panel").querySelector("output").hasChildNodes() ? slider.value : undefined),
      (slider, value) => { slider.value = value; slider.dispatchEvent(new Event("input")); }],
    "thead button": [
      (button) => button.closest("th").getAttribute("aria-sort") ?? undefined,
      (button, order) => { button.click(); if (order === "descending") button.click(); }],
    ".wide": [(part) => part.scrollLeft || undefined, (part, left) => { part.scrollLeft = left; }],
  };
  const remembered = (kinds) => Object.entries(kinds).flatMap(([selector, [tell, again]]) =>
    all(selector).map((part) => [tell(part), named(part)]).filter(([state]) => state !== undefined)
      .map(([state, name]) => () => {
        const part = found(selector, name);
        if (part) again(part, state);
      }));

  // Where the reader is: what begins last above the upper edge of the window, and how far above.
  const PLACES = "section, .panel, details, article:not([hidden])";
  const placed = () => {
    if (window.scrollY === 0) return () => {};
    const above = all(PLACES).map((part) => [part, part.getBoundingClientRect().top]).filter(([, top]) => top <= 1);
    if (above.length === 0) return () => {};
    const [part, top] = above.reduce((one, other) => (other[1] >= one[1] ? other : one));
    const name = named(part);
    return () => {
      const now = found(PLACES, name);
      if (now) window.scrollBy({ top: now.getBoundingClientRect().top - top, behavior: "instant" });
    };
  };
  const FOCUSED = "a, button, input, select, summary, pre, .wide";
  const focused = () => {
    const part = document.activeElement;
    const name = part && part.closest("main") ? named(part) : null;
    return () => { if (name !== null) found(FOCUSED, name)?.focus({ preventScroll: true }); };
  };

  // Cards that are as they were stay: their pictures are decoded.
  const keepCards = (fresh) => {
    const known = new Map(all("article").map((card) => [named(card), card]));
    for (const card of all("article", fresh)) {
      const old = known.get(named(card));
      if (old && old.innerHTML === card.innerHTML) card.replaceWith(old);
    }
  };
  const renew = (page) => {
    const fresh = new DOMParser().parseFromString(page, "text/html");
    const [first, last] = [remembered(before), [...remembered(after), focused(), placed()]];
    keepCards(fresh);
    for (const name of ["header", "main"]) {
      document.querySelector(`body > ${name}`).replaceWith(fresh.querySelector(`body > ${name}`));
    }
    document.title = fresh.title;
    version = fresh.getElementById("live").dataset.version;
    first.forEach((again) => again());
    document.dispatchEvent(new Event("renewed"));
    last.forEach((again) => again());
  };

  // Nothing changes under the reader's hands.
  let touched = -Infinity;
  for (const kind of ["pointerdown", "keydown", "input"]) {
    document.addEventListener(kind, () => { touched = performance.now(); }, true);
  }
  const busy = () => {
    const still = performance.now() - touched;
    return still < 1000 || !getSelection().isCollapsed || (document.activeElement?.tagName === "SELECT" && still < 8000);
  };

  const tell = (lines, troubled) => {
    strip.classList.toggle("troubled", troubled);
    strip.replaceChildren(...lines.map((line) => Object.assign(document.createElement("p"), { textContent: line })));
  };
  let last = strip.dataset.at;
  let timer;
  const ask = async () => {
    clearTimeout(timer);
    try {
      const state = await (await fetch("state", { cache: "no-store" })).json();
      const waiting = state.version !== version && busy();
      if (state.version !== version && !waiting) renew(await (await fetch("./", { cache: "no-store" })).text());
      last = new Date().toLocaleTimeString();
      const news = waiting ? " More is there; it is shown once nothing is selected or typed." : "";
      tell([`Live, as of ${last}.${news}`, ...state.lines], state.troubled);
    } catch {
      tell([`diffproof serve does not answer: what is shown is as of ${last}.`], true);
    }
    if (!document.hidden) timer = setTimeout(ask, 1000 * strip.dataset.every);
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  timer = setTimeout(ask, 1000 * strip.dataset.every);
})();
