"""Whether texts in a browser can be read."""

from __future__ import annotations

# Of every text that is shown: its contrast with what is behind it (WCAG 2.1), as the browser mixes colours.
CONTRASTS = """() => {
  const channels = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [x, y, z]) => [[r, x], [g, y], [b, z]].map(([u, v]) => a * u + (1 - a) * v);
  const luminance = (colour) => {
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = colour.map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  const behind = (element) => {
    if (!element) return canvas;
    const found = channels(getComputedStyle(element).backgroundColor);
    return found[3] === 1 ? found.slice(0, 3) : over(found, behind(element.parentElement));
  };
  const opacity = (element) =>
    element ? getComputedStyle(element).opacity * opacity(element.parentElement) : 1;
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const hidden = !walker.currentNode.data.trim() || ["SCRIPT", "TITLE", "title"].includes(element.tagName);
    if (hidden || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    const [r, g, b, a] = channels(element instanceof SVGElement ? style.fill : style.color);
    const ground = behind(element);
    const text = over([r, g, b, a * opacity(element)], ground);
    const [low, high] = [luminance(text), luminance(ground)].sort((x, y) => x - y);
    found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found;
}"""
