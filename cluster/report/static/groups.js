"use strict";
// Groups of a step: every sample with its reward, its parts and its advantage, best first.

const GROUP_PAGE = 8;
const GROUP_SORTS = {
  spread: ["teach most: rewards differ most", (group) => -group.spread],
  flat: ["teach least: rewards differ least", (group) => group.spread],
  given: ["as they were sampled", () => 0],
  invalid: ["samples without a reward first", (group) => -group.samples.filter((sample) => sample.invalid).length],
};

const figure = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));

function advantageBar(value, most) {
  const bar = make("span", { class: `bar ${value < 0 ? "down" : "up"}` });
  bar.style.width = `${most ? (50 * Math.abs(value)) / most : 0}%`;
  return make("div", { class: "bars" }, bar);
}

function sampleRow(sample, most) {
  const heard = sample.words ? words({ words: sample.words, text: "" }) : make("span", { class: "hint" },
    sample.edits ? `heard with ${sample.edits[0]} S, ${sample.edits[1]} D, ${sample.edits[2]} I` : "");
  const text = make("td", {}, sample.count > 1 ? make("b", {}, `${sample.count} × `) : "", heard);
  if (sample.invalid) text.append(make("div", { class: "note bad" }, `no reward: ${sample.invalid}`));
  if (sample.cut) text.append(make("div", { class: "note bad" }, "cut off by the token budget"));
  const tone = sample.advantage > 0 ? "good" : sample.advantage < 0 ? "bad" : "";
  return make("tr", {}, make("td", {}, advantageBar(sample.advantage, most)), make("td", { class: `figure ${tone}` }, figure(sample.advantage)),
    make("td", { class: "figure" }, figure(sample.reward, 3)), text,
    ...sample.parts.map((part) => make("td", { class: "figure" }, figure(part))), make("td", { class: "figure" }, String(sample.tokens)));
}

function groupCard(group, run) {
  const most = Math.max(...group.samples.map((sample) => Math.abs(sample.advantage)));
  const note = most === 0 ? "All samples have the same reward: this group teaches nothing." : "";
  const head = ["advantage", "", "reward", group.samples.some((sample) => sample.words) ? "what was sampled" : "as the judge heard it",
    ...run.parts.map(([name, weight]) => `${name} × ${weight}`), "tokens"];
  const facts = [group.prompt, group.lang, group.seconds ? `${group.seconds.toFixed(2)} s` : null, group.outcome].filter(Boolean).join(" · ");
  return make("div", { class: "card group" }, make("div", { class: "reference" }, group.reference), make("div", { class: "hint" }, facts),
    make("div", { class: "wide" }, make("table", {}, make("thead", {}, make("tr", {}, ...head.map((text) => make("th", {}, text)))),
      make("tbody", {}, ...group.samples.map((sample) => sampleRow(sample, most))))),
    make("div", { class: "hint" }, note));
}

function showGroups(data) {
  const place = document.getElementById("group-cards");
  if (!place) return;
  const get = (name) => document.getElementById(`g-${name}`);
  const runs = data.groups.map((run, number) => [String(number), data.curves.runs[number].name]);
  fill(get("run"), runs.filter(([number]) => Object.keys(data.groups[number].steps).length));
  fill(get("sort"), Object.entries(GROUP_SORTS).map(([name, [label]]) => [name, label]));
  let shown = GROUP_PAGE;
  const show = () => {
    const run = data.groups[Number(get("run").value)];
    const steps = Object.keys(run.steps);
    fill(get("step"), steps.map((step) => [step, step]));
    const wanted = get("text").value.trim().toLowerCase();
    const [, key] = GROUP_SORTS[get("sort").value];
    const all = run.steps[get("step").value];
    const found = all.filter((group) => `${group.prompt}\n${group.reference}`.toLowerCase().includes(wanted)).sort((a, b) => key(a) - key(b));
    place.replaceChildren(...found.slice(0, shown).map((group) => groupCard(group, run)));
    get("count").textContent = `${found.length} of ${all.length} groups`;
    get("estimator").textContent = run.estimator;
    get("more").hidden = found.length <= shown;
  };
  document.getElementById("group-filters").oninput = () => { shown = GROUP_PAGE; show(); };
  get("more").onclick = () => { shown += GROUP_PAGE; show(); };
  show();
}
