"use strict";
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const [armMenu, kindMenu, problemMenu, previous, next] =
    ["arm", "kind", "problem", "previous", "next"].map((id) => document.getElementById(id));
  const place = document.getElementById("shown-problem");
  const note = document.getElementById("browser-note");
  const kinds = {
    "all": () => true,
    "gained": (problem) => problem.difference > 0,
    "lost": (problem) => problem.difference < 0,
    "no difference": (problem) => problem.difference === 0,
  };
  let problems = [];

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const number = (value) => (value === null ? "-" : String(Number(value.toFixed(4))));
  const signed = (value) => (value > 0 ? "+" : "") + number(value);
  const option = (value, text) => {
    const made = element("option", text);
    made.value = value;
    return made;
  };

  function answer(found, position, drawn) {
    const made = document.createDocumentFragment();
    const ended = found.finish_reason === "length" ? "cut off at the limit" : found.finish_reason;
    const facts = [`score ${number(found.score)}`, `${found.tokens} tokens`, ended];
    const [first, last] = found.losses;
    if (first !== null && last !== null) {
      facts.push(`prompt loss ${first.toFixed(3)} → ${last.toFixed(3)}`);
    }
    if (drawn > 1) facts.unshift(`answer ${position + 1} of ${drawn}`);
    made.append(element("p", facts.join(" · "), "note"), element("pre", found.text));
    return made;
  }

  function side(title, answers, drawn) {
    const made = element("section");
    made.append(element("h3", title));
    answers.forEach((i, position) => made.append(answer(data.answers[i], position, drawn)));
    return made;
  }

  function show() {
    const arm = data.arms[armMenu.value];
    const at = Number(problemMenu.value);
    const problem = problems[at];
    previous.disabled = !problem || at === 0;
    next.disabled = !problem || at === problems.length - 1;
    place.replaceChildren();
    if (!problem) {
      place.append(element("p", "No problem of this kind is among those shown."));
      return;
    }
    const difference = problem.difference;
    if (difference !== null) {
      const sign = difference > 0 ? "more" : difference < 0 ? "less" : "";
      place.append(element("p", `Difference in score ${signed(difference)}`, `difference ${sign}`));
    }
    const prompt = data.prompts[problem.prompt];
    const asked = element("details");
    const whose = problem.own_prompt ? `prompt of ${arm.arm}; the baseline's is another` : "prompt";
    asked.append(element("summary", `Problem ${problem.id}: ${whose}`), element("pre", prompt.text));
    place.append(asked);
    if (prompt.gold.length) place.append(element("p", `Gold: ${prompt.gold.join(" | ")}`));
    const sides = element("div", undefined, "sides");
    if (problem.baseline.length) sides.append(side("baseline", problem.baseline, problem.drawn));
    sides.append(side(arm.arm, problem.arm, problem.drawn));
    place.append(sides);
  }

  function list() {
    const arm = data.arms[armMenu.value];
    problems = arm.problems.filter(kinds[kindMenu.value]);
    problemMenu.replaceChildren(...problems.map((problem, i) => {
      const difference = problem.difference === null ? "" : ` (${signed(problem.difference)})`;
      return option(i, `${i + 1}. problem ${problem.id}${difference}`);
    }));
    const shown = arm.problems.length;
    note.textContent = shown < arm.all
      ? `The ${shown} largest differences of ${arm.all} problems are shown; all are in samples.jsonl.`
      : `All ${arm.all} problems are shown.`;
    show();
  }

  function step(by) {
    problemMenu.value = Number(problemMenu.value) + by;
    show();
  }

  const several = (key) => new Set(data.arms.map((arm) => arm[key])).size > 1;
  const named = ["run", "task"].filter(several);
  armMenu.append(...data.arms.map((arm, i) =>
    option(i, [...named.map((key) => arm[key]), arm.arm].join(", "))));
  kindMenu.append(...Object.keys(kinds).map((kind) => option(kind, kind)));
  armMenu.addEventListener("change", list);
  kindMenu.addEventListener("change", list);
  problemMenu.addEventListener("change", show);
  previous.addEventListener("click", () => step(-1));
  next.addEventListener("click", () => step(1));
  list();
})();
