"use strict";
(() => {
  const one = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  document.documentElement.classList.add("js");

  const table = one("#table");
  const results = one("#results");
  const groups = all("tbody", table).filter((body) => body.parentElement === table);
  const heads = all("thead th", table).filter((head) => head.closest("table") === table);
  const whenPressed = (element, act) => {
    element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      act();
    });
  };
  const rowOf = (group) => one("tr.row", group);

  // --- Sorting: up or down, numbers from the highest first, and on the third time as it was ---

  const valueOf = (group, column, isText) => {
    const cell = rowOf(group).cells[column];
    if (isText) return cell.dataset.value ?? cell.textContent;
    return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
  };
  const collator = new Intl.Collator("en", { numeric: true });

  let [sorted, filtered] = [false, false];
  const mix = () => table.classList.toggle("mixed", sorted || filtered); // each row then says whose it is

  const sort = (column) => {
    const head = heads[column];
    const isText = head.dataset.kind === "text";
    const ways = isText ? ["ascending", "descending", "none"] : ["descending", "ascending", "none"];
    const way = ways[(ways.indexOf(head.getAttribute("aria-sort")) + 1) % 3];
    for (const other of heads) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", way);
    sorted = way !== "none";
    mix();
    const sign = way === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const [x, y] = [a, b].map((group) => valueOf(group, column, isText));
      if (isText) return sign * collator.compare(x, y);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // what is not known is last
      return sign * (x - y);
    };
    table.append(...(way === "none" ? groups : [...groups].sort(compare)));
  };

  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.setAttribute("aria-sort", "none");
    head.addEventListener("click", () => sort(column));
    whenPressed(head, () => sort(column));
  });

  // --- Filters, of the table and of the marks in the charts ---

  const search = one("#search");
  const selects = all("select[id^='filter-']");
  const marks = all(".mark[data-row]");
  const textOf = (group) => all(".row > .text, .runs tbody th", group).map((one) => one.textContent).join(" ");
  const texts = new Map(groups.map((group) => [group, textOf(group).toLowerCase()])); // labels and names of runs

  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = selects.filter((select) => select.value).map((select) => [select.id.slice(7), select.value]);
    const shown = new Set();
    for (const group of groups) {
      const fits = wanted.every(([name, value]) => group.dataset[name] === value);
      group.hidden = !(fits && words.every((word) => texts.get(group).includes(word)));
      if (!group.hidden) shown.add(rowOf(group).id);
    }
    for (const mark of marks) mark.classList.toggle("dimmed", !shown.has(mark.dataset.row));
    const number = shown.size === groups.length ? `${groups.length}` : `${shown.size} of ${groups.length}`;
    one("#shown").textContent = `${number} ${groups.length === 1 ? "row" : "rows"}`;
    filtered = shown.size < groups.length;
    mix();
    one("#nothing").hidden = shown.size > 0;
  };
  search.addEventListener("input", filter);
  for (const select of selects) select.addEventListener("change", filter);
  filter();

  for (const entry of all("[data-filter]")) {
    const select = one(`#filter-${entry.dataset.filter}`);
    if (!select) continue; // there is only one
    const press = () => {
      select.value = select.value === entry.dataset.value ? "" : entry.dataset.value;
      select.dispatchEvent(new Event("change"));
    };
    select.addEventListener("change", () => entry.setAttribute("aria-pressed", select.value === entry.dataset.value));
    entry.setAttribute("role", "button");
    entry.setAttribute("aria-pressed", false);
    entry.tabIndex = 0;
    entry.addEventListener("click", press);
    whenPressed(entry, press);
  }

  one(".controls").addEventListener("submit", (event) => event.preventDefault());
  for (const box of all("input[data-shows]")) {
    const show = () => results.classList.toggle(`with-${box.dataset.shows}`, box.checked);
    box.addEventListener("change", show);
    show(); // a browser may keep what was chosen before the page was loaded anew
  }

  // --- Runs that open below their row ---

  const open = (link, wanted) => {
    link.setAttribute("aria-expanded", wanted);
    document.getElementById(link.getAttribute("aria-controls")).classList.toggle("opened", wanted);
  };
  for (const link of all("a.open", table)) {
    link.setAttribute("role", "button");
    open(link, false);
    link.addEventListener("click", (event) => {
      event.preventDefault();
      open(link, link.getAttribute("aria-expanded") !== "true");
    });
    whenPressed(link, () => link.click());
  }
  for (const link of all("a.close", table)) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const opener = one("a.open", link.closest("tbody"));
      open(opener, false);
      opener.focus();
    });
  }
  const follow = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const runs = target?.closest("tr.runs");
    if (!runs) return;
    open(one("a.open", runs.parentElement), true);
    target.scrollIntoView({ block: "center" });
  };
  window.addEventListener("hashchange", follow);
  follow();

  // --- Charts: what a mark is, by mouse, touch or arrow keys ---

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);

  const show = (mark, lit) => {
    for (const other of all(`[data-row="${mark.dataset.row}"]`)) other.classList.toggle("lit", lit);
    document.getElementById(mark.dataset.row ?? "")?.classList.toggle("lit", lit);
    tip.hidden = !lit;
    if (!lit) return;
    tip.textContent = mark.dataset.words;
    const box = mark.lastElementChild.getBoundingClientRect();
    const left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8);
    const top = box.bottom + 8 + tip.offsetHeight > innerHeight ? box.top - tip.offsetHeight - 8 : box.bottom + 8;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  };
  for (const chart of all("svg.chart")) {
    const points = all(".mark, .point", chart);
    points.forEach((mark, place) => {
      const title = one("title", mark);
      mark.dataset.words = title.textContent;
      mark.setAttribute("aria-label", title.textContent.replaceAll("\n", ", "));
      title.remove(); // or the browser would say the same
      mark.setAttribute("tabindex", place === 0 ? 0 : -1);
      for (const [name, lit] of [["pointerenter", true], ["pointerleave", false], ["focus", true], ["blur", false]]) {
        mark.addEventListener(name, () => show(mark, lit));
      }
    });
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const seen = points.filter((mark) => !mark.classList.contains("dimmed"));
      const place = seen.indexOf(document.activeElement);
      if (!step || place < 0) return;
      event.preventDefault();
      const next = seen[(place + step + seen.length) % seen.length];
      seen[place].setAttribute("tabindex", -1);
      next.setAttribute("tabindex", 0);
      next.focus({ preventScroll: true });
    });
  }
})();
