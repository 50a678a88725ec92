"""The page of a set of runs: its markup, read back, and how it behaves in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import urllib.parse
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from made_up import content, ft_sam, write

from bdjax import cli, report
from bdjax.checks import InputError
from bdjax.report import bundle, cells, page, published, tables
from bdjax.report.page import compared, svg
from bdjax.report.page import content as contents
from bdjax.runs.record_format import SECTIONS

VOID = {"meta", "link", "img", "input", "br"}
HEADS = ["ACC", "ASR", "RA", "DER", "n", "ASR < 10\N{NO-BREAK SPACE}%", "seconds", "gradients"]


class Element:
    """An element as a parser found it."""

    def __init__(self, tag, attributes):
        self.tag, self.attributes, self.children = tag, dict(attributes), []

    @property
    def text(self):
        return "".join(one if isinstance(one, str) else one.text for one in self.children)

    @property
    def classes(self):
        return (self.attributes.get("class") or "").split()

    def all(self, tag=None, class_=None):
        for one in self.children:
            if isinstance(one, Element):
                if tag in (None, one.tag) and (class_ is None or class_ in one.classes):
                    yield one
                yield from one.all(tag, class_)

    def one(self, *wanted):
        (found,) = self.all(*wanted)
        return found


class Parser(HTMLParser):
    """Makes a tree of a page, and refuses tags that do not match."""

    def __init__(self):
        super().__init__()
        self.path = [Element("document", ())]

    def handle_starttag(self, tag, attrs):
        made = Element(tag, attrs)
        self.path[-1].children.append(made)
        if tag not in VOID:
            self.path.append(made)

    def handle_endtag(self, tag):
        assert self.path.pop().tag == tag

    def handle_data(self, data):
        self.path[-1].children.append(data)


def parse(text):
    parser = Parser()
    parser.feed(text)
    parser.close()
    assert len(parser.path) == 1
    return parser.path[0]


def add_samples(folder):
    random = np.random.default_rng(0)
    for file in folder.rglob("record.json"):
        images = random.integers(0, 200, (12, 8, 8, 1), dtype=np.uint8)
        label = np.arange(12, dtype=np.uint8) % 10
        predictions = {
            f"{which}_{when}": label
            for which in ("clean", "triggered")
            for when in ("before", "after")
        }
        arrays = {"clean": images, "triggered": images + 50, "label": label, **predictions}
        np.savez(file.with_name("samples.npz"), **{**arrays, "triggered_before": 0 * label})


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two attacks on a data set and network of the papers, each with controls and three strengths, over two seeds."""
    folder = tmp_path_factory.mktemp("page") / "runs"
    plans = [
        (None, 80, 0.5),
        ({"name": "ft"}, 60, 0.6),
        *((ft_sam(rho), 20 - rho, 0.8 + rho / 100) for rho in (1, 2, 4)),
    ]
    made = [
        content(seed, {"name": attack}, defense, hits - 3 * seed, rating, data={"name": "cifar10"})
        for attack in ("blended", "badnets")
        for defense, hits, rating in plans
        for seed in (0, 1)
    ]
    for record in made:
        record["run_id"] += f"-{record['config']['defense'].get('rho', '')}".rstrip("-")
        record["versions"] = {"bdjax": "0.1.0", "jax": "0.10.2"}
        record["device"] = {
            "platform": "cpu",
            "kind": "cpu",
            "host_peak_bytes": len(record["run_id"]),
        }
        record["data"]["fingerprint"] = {"train": "ab" * 32, "test": "cd" * 32}
        record["stealth"] = {
            "test": {"psnr": 25.0, "ssim": 0.99, "linf": 0.5, "l2": 2.0, "changed_share": 0.01}
        }
    write(folder, *made)
    add_samples(folder)
    return folder


@pytest.fixture(scope="session")
def rows(runs):
    return report.summarize(report.load([runs]))


@pytest.fixture(scope="session")
def file(runs):
    return page.write(report.load([runs]), runs.parent / "pages" / "report.html")


@pytest.fixture(scope="session")
def document(file):
    return parse(file.read_text(encoding="utf-8"))


def of(folder, *records):
    return parse(page.html(report.load([write(folder, *records)]), folder))


def lines(document):
    """Return the rows of the summary table."""
    return list(document.all("tr", "row"))


def table_cells(line):
    return [one.text for one in line.children if one.tag == "td" and "text" not in one.classes]


# --- One file ---


def addresses(document):
    return [
        value
        for one in document.all()
        for key, value in one.attributes.items()
        if key in ("src", "href")
    ]


def test_the_files_of_an_attack_are_among_the_hashes_of_its_data(tmp_path):
    record = content(0)
    files = {"attack.trigger_image": "ef" * 32}
    record["data"]["fingerprint"] = {"train": "ab" * 32, "test": "cd" * 32, "files": files}
    write(tmp_path / "runs", record)
    text = page.write(report.load([tmp_path / "runs"]), tmp_path / "report.html").read_text()
    hashes = {
        name: f"{start * 8}…"
        for name, start in (("train", "ab"), ("test", "cd"), ("attack.trigger_image", "ef"))
    }
    assert all(f"{name} {digits}" in text for name, digits in hashes.items())


def test_everything_is_in_the_file_and_nothing_is_fetched(document):
    for address in addresses(document):
        assert address.startswith(("data:", "#")) or not urllib.parse.urlsplit(address).scheme, (
            address
        )
        assert not address.startswith("//")
    style = document.one("style").text
    assert "url(" not in style
    assert "@import" not in style
    assert not [key for one in document.all() for key in one.attributes if key.startswith("on")]


def test_the_policy_allows_the_pages_own_script_and_no_other(document):
    script = document.one("script").text
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [
        one.attributes["content"] for one in document.all("meta") if "http-equiv" in one.attributes
    ]
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith(f"script-src 'sha256-{digest}'")


def test_each_anchor_is_there_once_and_each_link_leads_somewhere(document, file):
    ids = [one.attributes["id"] for one in document.all() if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for address in addresses(document):
        if address.startswith("#"):
            assert address[1:] in ids
        elif not address.startswith("data:"):
            assert file.parent.joinpath(urllib.parse.unquote(address)).is_file()


def test_each_run_links_to_its_record_with_counts_and_denominators(document, file, rows):
    shown = {
        one.text: one.attributes["href"]
        for one in document.all("a")
        if one.attributes["href"].endswith("record.json")
    }
    assert len(shown) == sum(row.n for row in rows)
    for run, address in shown.items():
        assert (
            json.loads(file.parent.joinpath(urllib.parse.unquote(address)).read_text())["run_id"]
            == run
        )
    line = next(one for one in document.all("tr") if one.attributes.get("id") == "run-badnets-ft-1")
    assert [cell.text for cell in line.all("td")][:5] == [
        "1",
        "90 → 90 of 100",
        "73 → 57 of 80",
        "0 → 60 of 80",
        "0.6000",
    ]


def test_the_config_of_a_row_is_yaml_that_says_what_the_record_says(document, rows):
    for group, row in zip(document.all("tr", "runs"), rows, strict=True):
        shown, config = yaml.safe_load(group.one("pre").text), row.records[0].config
        assert {"seed": 0, **shown, "data": {**shown["data"], "data_dir": None}} == config


def test_it_says_how_to_repeat_a_run_and_a_record_of_a_bundle(file, runs, tmp_path):
    assert re.search(
        r"bdjax run --config \.\./runs/run0\d\d/config\.yaml", file.read_text(encoding="utf-8")
    )
    records = report.load([bundle.write(report.load([runs]), tmp_path / "records.jsonl")])
    text = page.html(records, tmp_path)
    assert "bdjax run --config config.yaml --seed 0" in text
    assert "Below each row of the table stands the resolved config" in text


def test_it_says_what_was_measured(document):
    assert document.one("head").one("title").text == "Backdoors on cifar10: 2 attacks, 2 defenses"
    lead = document.one("p", "lead").text
    assert lead.startswith(
        "20 runs of preact_resnet18 on cifar10: badnets, blended against none, ft, ft_sam; 2 seeds (0, 1)."
    )
    assert "bdjax 0.1.0, jax 0.10.2 on cpu" in lead
    findings = [
        one.text.replace("\N{NO-BREAK SPACE}", " ")
        for one in document.one("ul", "findings").all("li")
    ]
    assert findings == [
        "Without a defense the mean ASR is 98.1 %.",
        "0 of 16 runs with a defense end with an ASR below 10 %.",
        "Highest mean DER: ft_sam on 2 of 2 victims.",
        "Over all victims ft_sam ρ=4 has the highest mean DER, 84.0 %.",
    ]
    assert [card.one("p", "winner").text for card in document.all("div", "finding")] == [
        "ft_sam ρ=4"
    ] * 2


def test_the_same_records_make_the_same_page(runs, file):
    again = page.write(reversed(report.load([runs])), file.with_name("again.html"))
    assert again.read_bytes() == file.read_bytes()


# --- Table ---


def test_numbers_are_those_of_the_summary(document, rows):
    head = next(document.all("thead"))
    assert [one.text for one in head.all("th")][2:10] == HEADS
    shown = lines(document)
    assert len(shown) == len(rows)
    for line, row in zip(shown, rows, strict=True):
        names = [one for one in line.children if "text" in one.classes]
        assert names[0].text == row.attack
        assert names[1].one("a").text == row.defense
        expected = [cells.spread(one, 1, 100) for one in row.statistics.values()]
        low = sum(record.value("attack_success_rate") < 0.1 for record in row.records)
        expected += [str(row.n), f"{low} of {row.n}", cells.spread(row.run_seconds), "200"]
        assert table_cells(line)[:8] == expected
        values = [
            one.attributes["data-value"]
            for one in line.children
            if one.tag == "td" and "rate" in one.classes
        ]
        means = [100 * one.mean for one in row.statistics.values()]
        assert [float(value) for value in values] == pytest.approx(means)


def test_best_and_second_best_are_marked(document, rows):
    marked = {
        name: [bool(list(line.all(name))) for line in lines(document)] for name in ("strong", "u")
    }
    assert marked["strong"] == [row in report.best(rows) for row in rows]
    assert marked["u"] == [row in report.runners_up(rows) for row in rows]
    assert sum(marked["strong"]) == sum(marked["u"]) == 2


def test_one_seed_has_no_standard_deviation(tmp_path):
    document = of(tmp_path, content(0), content(0, defense={"name": "ft"}))
    assert "±" not in "".join(one.text for line in lines(document) for one in line.all("td"))
    assert "of one seed" in document.text


def test_what_was_not_measured_has_no_column(document, tmp_path):
    assert "PSNR" in [one.text for one in document.all("th")]
    assert not {"PSNR", "λ_max"} & {one.text for one in of(tmp_path, content(0)).all("th")}


def test_smoothness_has_columns_where_it_was_measured(tmp_path):
    write(tmp_path, content(0), content(0, defense={"name": "ft"}))
    measured = {
        "after": {
            "mixed": {"largest_eigenvalue": 12.3, "hessian_trace": 45.6, "fisher_trace": None}
        }
    }
    (tmp_path / "run000" / "smoothness.json").write_text(json.dumps(measured))
    document = parse(page.html(report.load([tmp_path]), tmp_path))
    assert [table_cells(line)[8:] for line in lines(document)] == [["12.3", "45.6"], ["–", "–"]]


def test_tables_are_there_as_files(document, rows):
    full = report.summarize(
        [record for row in rows for record in row.records], sharpness=True, stealth=True
    )
    for name, style in (("csv", "csv"), ("md", "markdown"), ("tex", "latex")):
        (link,) = [
            one for one in document.all("a") if one.attributes.get("download") == f"bdjax.{name}"
        ]
        text = base64.b64decode(link.attributes["href"].partition("base64,")[2]).decode()
        assert text == tables.table(full, style) + "\n"


def test_published_values_stand_below_with_their_difference(document, rows):
    (row,) = (row for row in rows if row.attack == "blended" and row.defense == "ft_sam ρ=2")
    reported = compared.of_row(row)
    values = {
        (v.metric, v.value)
        for v in published.of_config(row.records[0].config)
        if v.metric in ("acc", "asr", "ra", "der")
    }
    assert reported
    assert {item for one in reported for item in one.values.items()} <= values
    (group,) = (
        one
        for one in document.all("tbody")
        if one.attributes.get("data-attack") == "blended"
        and "ft_sam ρ=2" in [a.text for a in one.all("a", "open")]
    )
    said = list(group.all("tr", "published"))
    assert len(said) == len(reported)
    accuracy, success, *_ = table_cells(said[0])
    assert accuracy == f"{reported[0].values['acc']:.1f} (−{reported[0].values['acc'] - 90:.1f})"
    assert success == f"{reported[0].values['asr']:.1f} (+{20.625 - reported[0].values['asr']:.1f})"


def test_published_values_of_the_runs_own_setting_come_alone(tmp_path):
    run = content(0, {"name": "badnets"}, data={"name": "cifar10"})
    (row,) = report.summarize(report.load([write(tmp_path, run)]))
    assert {one.setting for one in compared.of_row(row)} == {"poison 10%"}
    assert len({(one.paper, *one.values.values()) for one in compared.of_row(row)}) == len(
        compared.of_row(row)
    )


# --- Strangers ---

EVIL = '"><script>alert(1)</script>'


def test_records_of_strangers_are_text(tmp_path):
    record = content(
        0,
        {"name": EVIL, "x'\"<b>": "</pre><b>"},
        {"name": "</style><i onclick=x>"},
        model={"name": "<!--"},
    )
    record["run_id"] = "<img src=x onerror=alert(1)> &amp;"
    record["data"]["class_names"] = ["</script><img src=x onerror=alert(1)>"] * 10
    record["versions"] = {EVIL: EVIL}
    record["device"] = [EVIL]
    folder = write(tmp_path / "javascript:alert(1)", record, content(1))
    add_samples(folder)
    file = page.write(
        report.load([folder]), tmp_path / "page.html", {EVIL: b"<svg onload='alert(1)'/>"}
    )
    document = parse(file.read_text(encoding="utf-8"))
    assert len(list(document.all("script"))) == len(list(document.all("style"))) == 1
    assert not [one for one in document.all("img") if not one.attributes["src"].startswith("data:")]
    assert not [key for one in document.all() for key in one.attributes if key.startswith("on")]
    assert not list(document.all("i"))
    test_everything_is_in_the_file_and_nothing_is_fetched(document)
    test_each_anchor_is_there_once_and_each_link_leads_somewhere(document, file)
    assert EVIL in [one.attributes.get("data-attack") for one in document.all("tbody")]


def test_sparse_records_make_a_page(tmp_path):
    bare = content(0)
    bare["config"] = {"seed": 0, **{name: {"name": "?"} for name in SECTIONS}}
    bare["data"] = {"num_classes": 2, "class_names": []}
    bare["metrics"]["after"]["attack_success_rate"] = float("nan")
    bare["metrics"]["defense_effectiveness_rating"] = float("nan")
    bare["cost"]["run_seconds"] = float("inf")
    document = parse(page.html([report.Record(tmp_path, bare)], tmp_path))
    assert table_cells(lines(document)[0])[:4] == ["90.0", "–", "75.0", "–"]
    assert not list(document.all("a", "mark"))


def test_runs_of_the_same_name_keep_their_anchors_apart(tmp_path):
    first, second = content(0), content(1)
    second["run_id"] = first["run_id"]
    found = contents.Content(
        tuple(report.summarize(report.load([write(tmp_path, first, second)]))), tmp_path
    )
    assert sorted(found.run_anchors.values()) == ["run-badnets-none-0", "run-badnets-none-0-2"]


def test_the_target_class_is_named(document):
    assert "Target class: 0 (class 0). Made with" in document.text
    assert "without any trigger are left out (target class: 0 (class 0))." in document.text


# --- Charts ---


def test_each_row_is_a_mark_that_leads_to_it(document, rows):
    for chart in list(document.all("svg", "chart"))[:2]:
        marks = list(chart.all("a", "mark"))
        assert sorted(one.attributes["href"] for one in marks) == sorted(
            f"#row-{i + 1}" for i in range(len(rows))
        )
        assert all("ACC" in one.one("title").text for one in marks)
        assert chart.attributes["aria-label"]


def test_marks_lie_where_their_values_are():
    chart = svg.chart("", svg.rates(), svg.linear([40, 60], 0, 100), "x", "y")
    (left, low), (right, high) = chart.at(0, 40), chart.at(100, 60)
    assert chart.at(25, 45) == pytest.approx(
        (left + (right - left) / 4, low + (high - low) / 4), abs=0.11
    )
    assert left < right
    assert low > high  # pixels count from the top


@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        ([44.2, 49.0], ["44", "46", "48", "50"]),
        ([0.0, 100.0], ["0", "50", "100"]),
        ([97.0], ["90", "95", "100"]),
        ([], ["0", "0.5", "1"]),
    ],
)
def test_linear_scales_have_round_numbers(values, numbers):
    scale = svg.linear(values, 0, 100)
    assert [words for _, words in scale.ticks] == numbers
    assert all(0 <= scale(value) <= 1 for value in values)


def test_costs_are_logarithmic_and_zero_has_a_place():
    scale = svg.costs([0.0, 10.0, 100.0, 1000.0])
    steps = np.diff([scale(value) for value in (10, 100, 1000)])
    assert steps[0] == pytest.approx(steps[1])
    assert 0 < scale(0) < scale(10) < scale(1000) < 1
    assert scale.ticks[0] == (0.0, "0")
    assert svg.costs([0.0, 0.0]).ticks[0][1] == "0"


def test_swept_options_have_a_number_at_each_value_that_has_room():
    assert [words for _, words in svg.swept([0.5, 1, 2, 4, 8]).ticks] == ["0.5", "1", "2", "4", "8"]
    assert [words for _, words in svg.swept([1, 1.01, 2, 3]).ticks] == ["1", "2", "3"]
    assert 0 < svg.swept([0, 0.01, 0.1, 1])(0) < 0.1


def test_a_swept_option_has_curves_with_bands_and_controls(document):
    (sweep,) = document.all("div", "sweep")
    assert sweep.one("h3").text == "Sensitivity of ft_sam to ρ"
    accuracy, success = sweep.all("svg", "chart")
    for chart in (accuracy, success):
        assert len(list(chart.all("g", "point"))) == 6
        assert len([one for one in chart.all("path", "line") if "control" in one.classes]) == 4
    assert len(list(success.all("path", "band"))) == 2
    assert not list(accuracy.all("path", "band"))  # all seeds agree


def test_every_chart_has_words(document):
    charts = [one for one in document.all("figure") if list(one.all("svg", "chart"))]
    assert len(charts) == 4
    assert all(len(one.one("figcaption").text) > 20 for one in charts)


# --- Images ---


def test_triggers_are_shown_with_the_verdicts(document):
    from PIL import Image

    (first, second) = document.all("div", "victim")
    assert first.one("h3").text == "badnets"
    assert (
        "ft_sam ρ=4 (highest DER), seed 0; residual × 2; PSNR 25.0" in first.one("p", "note").text
    )
    figures = list(second.all("figure"))
    assert len(figures) == 8
    images = [
        base64.b64decode(one.attributes["src"].partition(",")[2]) for one in figures[0].all("img")
    ]
    clean, triggered, residual = (
        np.asarray(Image.open(io.BytesIO(image))).astype(int) for image in images
    )
    assert (triggered - clean == 50).all()
    assert (residual == 128 + 2 * 50).all()
    assert [one.text for one in figures[0].all("span")] == [
        "✓ class 1",
        "→ ✓ class 1",
        "✗ class 0",
        "→ ✓ class 1",
    ]


def test_images_stop_at_the_budget_and_the_page_says_so(runs, monkeypatch):
    monkeypatch.setattr("bdjax.report.page.triggers.BUDGET", 1)
    document = parse(page.html(report.load([runs]), runs))
    assert [one.one("h3").text for one in document.all("div", "victim")] == ["badnets"]
    assert "Not shown, to keep the page small: blended." in document.text


def test_figures_of_analyses_are_embedded_under_their_captions(tmp_path):
    records = report.load([write(tmp_path, content(0))])
    files = {"Where it looks": b"\x89PNG\r\n\x1a\n", "A landscape": b"<?xml version='1.0'?><svg/>"}
    section = next(
        one
        for one in parse(page.html(records, tmp_path, files)).all("section")
        if one.attributes["id"] == "analyses"
    )
    assert (
        [one.text for one in section.all("figcaption")]
        == [one.attributes["alt"] for one in section.all("img")]
        == [*files]
    )
    kinds = [one.attributes["src"].partition(";")[0] for one in section.all("img")]
    assert kinds == ["data:image/png", "data:image/svg+xml"]
    with pytest.raises(
        InputError,
        match=r"the figure 'x' must be a PNG or an SVG file; got one that begins with b'GIF89a'",
    ):
        page.html(records, tmp_path, {"x": b"GIF89a"})


# --- Mistakes ---


def test_mistakes_are_one_line(runs, tmp_path, capsys):
    assert cli.main(["report", str(runs), "--html", str(tmp_path / "page.pdf")]) == 2
    assert re.fullmatch(
        r"bdjax: file must end in \.html; got '.*page\.pdf'\.\n", capsys.readouterr().err
    )
    (tmp_path / "taken").write_text("")
    assert cli.main(["report", str(runs), "--html", str(tmp_path / "taken" / "page.html")]) == 2
    assert "the folder of file must be a folder; " in capsys.readouterr().err  # before the table
    with pytest.raises(InputError, match="there are no records"):
        page.write([], tmp_path / "page.html")
    assert [one.name for one in tmp_path.iterdir()] == ["taken"]


def test_the_command_writes_the_page(runs, tmp_path, capsys):
    assert cli.main(["report", str(runs), "--html", str(tmp_path / "new" / "page.html")]) == 0
    assert capsys.readouterr().out.endswith("page.html\n")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!DOCTYPE html>\n<html")


# --- In a browser ---


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("there is no chromium with its chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for word in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-dev-shm-usage",
        "disable-background-networking",
    ):
        options.add_argument(f"--{word}")
    for word in (
        "disable-component-update",
        "disable-sync",
        "no-first-run",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, file):
    """The page, freshly loaded on a desktop in light colors; afterwards the console must be empty."""
    emulate(browser, 1280, "light")
    browser.get("about:blank")
    browser.get(file.resolve().as_uri())
    yield browser
    assert browser.get_log("browser") == []


def emulate(browser, width, scheme):
    # No scrolling that takes time
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = {"features": [{"name": name, "value": value} for name, value in features.items()]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def find(browser, selector):
    return browser.find_element("css selector", selector)


def defenses(browser):
    """Return attack and defense of the rows that are shown, in order."""
    script = """return [...document.querySelectorAll('tr.row')].filter(row => row.offsetParent)
        .map(row => row.cells[0].textContent + ' ' + row.querySelector('a.open').textContent)"""
    return browser.execute_script(script)


def head(browser, name):
    heads = browser.find_elements("css selector", "#table > thead th")
    return next(one for one in heads if one.text.strip() == name)


def names_of(rows):
    return [f"{row.attack} {row.defense}" for row in rows]


def test_nothing_is_requested(opened):
    opened.get_log("performance")  # what came before
    opened.refresh()
    messages = [json.loads(entry["message"])["message"] for entry in opened.get_log("performance")]
    asked = [
        one["params"]["request"]["url"]
        for one in messages
        if one["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert {urllib.parse.urlsplit(url).scheme for url in asked} <= {"file", "data", "about"}
    assert len([url for url in asked if url.startswith("file:")]) == 1


def test_a_click_sorts_and_a_third_restores(opened, rows):
    assert defenses(opened) == names_of(rows)
    column = head(opened, "DER")
    column.click()
    assert column.get_attribute("aria-sort") == "descending"
    ordered = sorted(rows, key=lambda row: -row.rating.mean)
    assert defenses(opened) == names_of(ordered)
    column.click()
    assert column.get_attribute("aria-sort") == "ascending"
    assert defenses(opened)[-1].endswith("ft_sam ρ=4")
    column.click()
    assert defenses(opened) == names_of(rows)


def test_keys_sort(opened, rows):
    from selenium.webdriver.common.keys import Keys

    column = head(opened, "ASR")
    column.send_keys(Keys.ENTER)
    assert column.get_attribute("aria-sort") == "descending"
    column.send_keys(Keys.SPACE)
    assert column.get_attribute("aria-sort") == "ascending"
    assert defenses(opened) == names_of(sorted(rows, key=lambda row: row.attack_success.mean))
    by_name = head(opened, "defense")
    by_name.send_keys(Keys.ENTER)
    assert column.get_attribute("aria-sort") == "none"
    assert [name.split(" ", 1)[1] for name in defenses(opened)][:4] == [
        "ft",
        "ft",
        "ft_sam ρ=1",
        "ft_sam ρ=1",
    ]


def test_filters_and_search_leave_rows_and_marks(opened, rows):
    from selenium.webdriver.support.select import Select

    Select(find(opened, "#filter-attack")).select_by_value("blended")
    left = [row for row in rows if row.attack == "blended"]
    assert defenses(opened) == names_of(left)
    assert find(opened, "#shown").text == f"{len(left)} of {len(rows)} rows"
    marks = opened.find_elements("css selector", "svg.chart:first-of-type a.mark")
    assert sum(mark.is_displayed() for mark in marks) == 2 * len(left)
    find(opened, "#search").send_keys("FT_SAM ρ=2")
    assert defenses(opened) == ["blended ft_sam ρ=2"]
    find(opened, "#search").send_keys(" weight_decay")  # which is in all configs, and in no label
    assert defenses(opened) == []
    assert find(opened, "#nothing").is_displayed()
    find(opened, "#search").clear()
    find(opened, "#search").send_keys("blended-ft_sam-1-4")
    assert defenses(opened) == ["blended ft_sam ρ=4"]


def test_an_entry_of_the_legend_filters(opened, rows):
    from selenium.webdriver.common.keys import Keys

    entry = find(opened, ".legend [data-filter=attack][data-value=badnets]")
    entry.click()
    assert entry.get_attribute("aria-pressed") == "true"
    assert defenses(opened) == names_of(row for row in rows if row.attack == "badnets")
    entry.send_keys(Keys.ENTER)
    assert defenses(opened) == names_of(rows)


def test_published_values_are_shown_on_demand(opened):
    line, box = find(opened, "tr.published"), find(opened, "#with-published")
    assert not line.is_displayed()
    box.click()
    assert line.is_displayed()
    assert find(opened, ".about-published").is_displayed()
    box.click()
    assert not line.is_displayed()


def test_a_row_opens_its_runs_by_click_and_by_key(opened):
    from selenium.webdriver.common.keys import Keys

    link, runs = find(opened, "#row-4 a.open"), find(opened, "#row-4-runs")
    assert not runs.is_displayed()
    link.click()
    assert runs.is_displayed()
    assert link.get_attribute("aria-expanded") == "true"
    link.send_keys(Keys.SPACE)
    assert not runs.is_displayed()
    link.send_keys(Keys.ENTER)
    find(opened, "#row-4-runs a.close").click()
    assert not runs.is_displayed()
    assert opened.switch_to.active_element == link


def test_a_link_to_a_run_opens_it(opened):
    opened.execute_script("location.hash = '#run-blended-ft-1'")
    assert find(opened, "#run-blended-ft-1").is_displayed()


def test_arrow_keys_walk_through_the_marks(opened):
    from selenium.webdriver.common.keys import Keys

    first = find(opened, "svg.chart a.mark")
    opened.execute_script("arguments[0].focus()", first)
    tip = find(opened, ".tip")
    assert tip.is_displayed()
    before = tip.text
    assert "ASR" in before
    first.send_keys(Keys.ARROW_RIGHT)
    assert tip.text != before
    assert opened.switch_to.active_element.get_attribute("tabindex") == "0"


def test_it_reads_without_scripts(browser, file):
    emulate(browser, 1280, "light")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get("about:blank")
        browser.get(file.resolve().as_uri() + "#row-2-runs")
        assert find(browser, "#row-2-runs").is_displayed()
        assert not find(browser, "#row-3-runs").is_displayed()
        assert not find(browser, ".controls").is_displayed()
        assert find(browser, "tr.published").is_displayed()
        assert find(browser, "svg.chart a.mark").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def brightness(color):
    return sum(map(int, re.findall(r"\d+", color)[:3])) / 3


def test_colors_follow_the_scheme(opened):
    def colors():
        style = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.backgroundColor, s.color]"
        return [brightness(color) for color in opened.execute_script(style, "body")]

    ground, ink = colors()
    assert ground > 200 > 100 > ink
    emulate(opened, 1280, "dark")
    ground, ink = colors()
    assert ground < 60 < 200 < ink


@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_page_is_wider_than_its_screen(opened, width):
    emulate(opened, width, "light")
    find(opened, "#row-1 a.open").click()
    find(opened, "#with-published").click()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    scroll = find(opened, "#results > .scroll")
    opened.execute_script("arguments[0].scrollLeft = 200", scroll)
    left = find(opened, "#row-2 .defense").rect["x"]
    assert left - scroll.rect["x"] == pytest.approx(1, abs=1)  # the defense stays in sight


def test_a_strangers_script_does_not_run(browser, tmp_path):
    record = content(0, {"name": EVIL})
    record["data"]["class_names"] = ["</script><script>document.title = 'owned'</script>"] * 10
    folder = write(tmp_path, record)
    add_samples(folder)
    browser.get(page.write(report.load([folder]), tmp_path / "page.html").as_uri())
    assert browser.title == "Backdoors on digits: 1 attack, 0 defenses"
    assert browser.get_log("browser") == []
    assert find(browser, "#row-1 .attack").text == EVIL
