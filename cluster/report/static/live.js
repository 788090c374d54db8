"use strict";
// A page of a run that goes on asks its server every few seconds whether there is news, and takes it in where it stands.

const PATIENCE = 5000;

function controls() {
  return [...document.querySelectorAll("main input, main select")];
}

function takeIn(text) {
  const news = new DOMParser().parseFromString(text, "text/html");
  const values = new Map(controls().map((control) => [control.id, control.value]));
  const open = [...document.querySelectorAll("main details")].map((element) => element.open);
  const place = scrollY;
  charts.clear();
  for (const part of ["main", "nav", "#data"]) document.querySelector(part).replaceWith(news.querySelector(part));
  const data = JSON.parse(document.getElementById("data").textContent);
  show(data);
  for (const control of controls()) {
    if (values.get(control.id) === undefined || values.get(control.id) === control.value) continue;
    control.value = values.get(control.id);
    control.dispatchEvent(new Event("input", { bubbles: true }));
  }
  document.querySelectorAll("main details").forEach((element, number) => { element.open = Boolean(open[number]); });
  scrollTo(0, place);
  return data.live;
}

async function follow(state) {
  const say = (text) => { document.getElementById("live").textContent = text; };
  say("live");
  for (;;) {
    await new Promise((done) => setTimeout(done, PATIENCE));
    const listening = [...document.querySelectorAll("audio")].some((audio) => !audio.paused);
    try {
      const now = await (await fetch("state")).text();
      if (now !== state && !listening) {
        const answer = await fetch("news");
        if (!answer.ok) throw new Error(await answer.text());
        state = takeIn(await answer.text());
      }
      say(`live · ${new Date().toLocaleTimeString()}`);
    } catch (error) {
      say(error instanceof TypeError ? "the server has ended" : error.message);
    }
  }
}
