"""Every shipped workflow in a real browser: opened from the template browser, run, its help read; and what a new user
meets: titled cards, an error's first line, a saved picture dragged back, their language.

Needs Playwright (`pip install .[ui]`) and a Chromium: the one CHROMIUM names, the system's, or Playwright's own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from antipure.cli.graph import set_inputs
from antipure.nodes import NODE_CLASS_MAPPINGS

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to test in a browser")

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = "antipure-comfyui"
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"  # as the workflows name it
MINUTES = 5

# Settings that make each workflow quick, by its twin's node ids, and the node whose help is read.
WORKFLOWS = {
    "protect_my_picture": (["3.steps=3"], "AntiPureSave"),
    "protect": (["3.steps=3"], "AntiPureProtect"),
    "purify": (["3.iterations=1"], "AntiPureDiffusionPurify"),
    "measure": ([], "AntiPureMetrics"),
    "protect_and_purify": (["3.steps=3", "5.iterations=1", "6.iterations=1"], "AntiPureInspect"),
    "robustness_report": (
        ["4.steps=1", "5.steps=1", "6.purifiers=gridpure1@2, held_out:gridpure1@2, jpeg75", "6.curve_iterations=2"],
        "AntiPureRobustnessReport",
    ),
    "sd_protect": (["5.steps=1"], "AntiPureDenoiserFromModel"),
    "sd_purification_customization": (
        [
            *("5.width=64", "5.height=64", "6.steps=1", "8.timestep=5", "9.timestep=5"),
            *("12.width=64", "12.height=64", "12.batch_size=1"),
            *(f"{node}.steps=2" for node in (21, 31, 23, 33)),
        ],
        "AntiPureSeedTraining",
    ),
    "demo_protect_latent": (["4.steps=2", "5.timestep=20", "6.timestep=20"], "AntiPureLoadDemoModel"),
    "demo_purification_customization": (
        [
            *("3.steps=2", "4.timestep=20", "5.timestep=20", "7.batch_size=1"),
            *(f"{branch}{node}.steps=2" for branch in (1, 2, 3, 4) for node in (1, 3)),
        ],
        "AntiPureFaceMetrics",
    ),
    "lora_patch_defensive": (["2.count=2", "3.epochs=1", "3.batch=2", "6.count=2"], "AntiPureTrainLoraPatch"),
    "lora_patch_evaluation": (
        ["2.count=1", "3.edits=glasses", "5.count=1", "6.edits=glasses"],
        "AntiPureDefenceReport",
    ),
    "lora_patch_sd": (
        [
            *("5.width=64", "5.height=64", "8.steps=2", "8.rank=2"),
            *("13.width=64", "13.height=64", "13.batch_size=1", "20.steps=2", "30.steps=2"),
        ],
        "AntiPureTrainModelPatch",
    ),
}

HOST_NOISE = "|".join(
    (
        # The help panel asks for a page in the user's language before it takes ours.
        rf"^404 .*/extensions/{FOLDER}/docs/\w+/[\w-]+\.md$",
        # A frontend newer than its server (1.49 with 0.8) asks for jobs by a status that the server does not know.
        r"^400 .*/api/jobs\?status=",
        r"jobs: 400$",
        # Without the internet: the frontend looks for a missing checkpoint there, which its own policy forbids.
        r"huggingface\.co.*(Content Security Policy|violates)",
    )
)


OVERLAPS = """() => {
  const scale = app.canvas.ds.scale;
  const boxes = app.graph._nodes.map(node => {
    const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    const [width, height] = shown ? [shown.width / scale, shown.height / scale] : [node.size[0], node.size[1] + 30];
    return [node.title, node.pos[0], node.pos[1] - 30, width, height, Boolean(shown)];
  });
  const found = [];
  boxes.forEach(([a, ax, ay, aw, ah], i) => boxes.slice(i + 1).forEach(([b, bx, by, bw, bh]) => {
    if (ax < bx + bw - 2 && bx < ax + aw - 2 && ay < by + bh - 2 && by < ay + ah - 2) found.push(`${a} / ${b}`);
  }));
  return [found, boxes.filter(box => box[5]).length];
}"""


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    with playwright.sync_playwright() as started:
        path = found or started.chromium.executable_path
        if not Path(path).is_file():
            pytest.skip("install Chromium, or name one in CHROMIUM, to test in a browser")
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def server(comfyui, random_checkpoint):
    comfyui.offer(random_checkpoint("sd15-small"), CHECKPOINT)
    return comfyui


@pytest.fixture
def page(browser, server):
    """ComfyUI's page. page.errors: what went wrong; the first page.startup of them before anything was done."""
    context = browser.new_context(viewport={"width": 1600, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(180_000)  # software rendering on a busy machine
    opened.errors = []

    def note(text: str) -> None:
        if not re.search(HOST_NOISE, text):
            opened.errors.append(text)

    def console(message) -> None:
        # A failed load says nothing but its status here; the answer itself is noted below, with its address.
        if message.type == "error" and "Failed to load resource" not in message.text:
            note(f"console: {message.text}")

    opened.on("console", console)
    opened.on("pageerror", lambda error: note(f"page: {error}"))
    opened.on("response", lambda answer: note(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
    opened.goto(server.url, wait_until="domcontentloaded")
    opened.wait_for_function("() => window.app?.extensionManager && window.app.graph && window.app.canvas")
    opened.wait_for_function("() => !document.querySelector('#splash-loader')")
    opened.wait_for_timeout(2000)
    opened.keyboard.press("Escape")
    opened.startup = len(opened.errors)
    yield opened
    context.close()


UI_FILES = {
    json.loads(path.read_text(encoding="utf-8"))["extra"]["antipure"]["name"]: path
    for path in (ROOT / "workflows").glob("*.json")
}


def read_ui(name: str) -> dict:
    return json.loads(UI_FILES[name].read_text(encoding="utf-8"))


def browse_templates(page) -> None:
    """Browse Templates, this pack's entry, down to its last card: old frontends draw the first twelve, in any order."""
    entry = page.get_by_text(FOLDER).first
    for _ in range(5):  # a slow page may not have heard of the first call, or close the window it opens by itself
        page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        try:
            entry.wait_for(timeout=20_000)
            break
        except playwright.TimeoutError:
            page.keyboard.press("Escape")
    entry.click()
    cards = page.get_by_role("heading", name=re.compile(r"^\d\d \w"))
    cards.first.wait_for()
    for _ in range(20):
        if cards.count() >= len(UI_FILES):
            break
        cards.last.scroll_into_view_if_needed()
        page.wait_for_timeout(500)


def open_template(page, name: str) -> None:
    """As a user does: the template browser, the card."""
    browse_templates(page)
    page.get_by_role("heading", name=UI_FILES[name].stem, exact=True).click()
    count = len(read_ui(name)["nodes"])
    page.wait_for_function("count => app.graph._nodes.length === count", arg=count)
    page.wait_for_timeout(1000)


def shown_dialogs(page) -> list[str]:
    return [dialog.inner_text() for dialog in page.get_by_role("dialog").all() if dialog.is_visible()]


def press_run(page, server) -> None:
    """Press Run and wait for the run's end and for the pictures of every node that shows some."""
    before = set(server.json("/history"))
    page.get_by_role("button", name=re.compile("^Run")).first.click()
    end = time.monotonic() + 60 * MINUTES
    while not (new := set(server.json("/history")) - before):
        assert time.monotonic() < end, "The run did not end."
        page.wait_for_timeout(300)
    entry = server.json("/history")[new.pop()]
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    shown = [int(node) for node, output in entry["outputs"].items() if output.get("images")]
    page.wait_for_function("ids => ids.every(id => app.graph.getNodeById(id).imgs?.length)", arg=shown)


def help_text(page, node_type: str) -> str:
    """Select the node, press its question mark, and read the panel."""
    page.evaluate(
        "type => { const node = app.graph._nodes.find(n => n.type === type); app.canvas.deselectAll?.();"
        " app.canvas.selectNode(node); app.canvas.ds.scale = 1; app.canvas.centerOnNode(node);"
        " app.canvas.setDirty(true, true) }",
        node_type,
    )
    page.get_by_test_id("info-button").first.evaluate("button => button.click()")
    heading = page.get_by_role("heading", name="How it works")
    heading.first.wait_for()
    return heading.first.locator("xpath=..").inner_text()


def plain(markdown: str) -> str:
    return re.sub(r"[*`]|\s+", lambda found: " " if found.group().isspace() else "", markdown)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_from_the_template_browser(page, server, name, tmp_path, tool):
    settings, help_of = WORKFLOWS[name]
    first = read_ui(name)["extra"]["antipure"]["first_id"]
    settings = [re.sub(r"^\d+", lambda node: str(first + int(node.group())), setting) for setting in settings]
    open_template(page, name)
    assert shown_dialogs(page) == []  # a missing node or model would say so in one
    assert page.evaluate("() => app.graph._nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).length") == 0

    known = server.json("/object_info")
    built, wanted = (
        page.evaluate("async () => (await app.graphToPrompt()).output"),
        tool("api_twins").to_prompt(read_ui(name)),
    )
    assert built.keys() == wanted.keys()
    for node_id, node in wanted.items():
        taken = known[node["class_type"]]["input"]
        names = {*taken.get("required", {}), *taken.get("optional", {})}
        inputs = {key: value for key, value in node["inputs"].items() if key in names}
        # Frontends send along what they themselves show on a node (PreviewAny's text).
        sent = {key: value for key, value in built[node_id]["inputs"].items() if key in names}
        assert sent == inputs, node["_meta"]["title"]

    for node_id, node in set_inputs(wanted, settings).items():
        for key, value in node["inputs"].items():
            if value != wanted[node_id]["inputs"][key]:
                page.evaluate(
                    "([id, key, value]) => { app.graph.getNodeById(id).widgets.find(w => w.name === key)."
                    "value = value }",
                    [int(node_id), key, value],
                )
    press_run(page, server)
    page.wait_for_timeout(500)
    picture = tmp_path / f"{name}.png"
    page.screenshot(path=picture)
    print(f"\nComfyUI {server.version}, {name}: {picture}")
    assert page.evaluate(OVERLAPS)[0] == [], "nodes grow with texts and previews, and have room for it"

    text = (ROOT / "web" / "docs" / f"{help_of}.md").read_text(encoding="utf-8")
    paragraph = plain(text.split("\n\n")[1])
    assert paragraph in plain(help_text(page, help_of))
    page.screenshot(path=tmp_path / f"{name}_help.png")
    assert page.errors[page.startup :] == []
    assert not [error for error in page.errors if "antipure" in error.lower()]


# What a new user meets ------------------------------------------------------------------------------------------

WORDS = {
    "nightshade": "AntiPureProtect",
    "poison": "AntiPureProtect",
    "style protection": "AntiPureProtect",
    "anti ai": "AntiPureProtect",
    "before after": "AntiPureInspect",
    "denoise attack": "AntiPureDiffusionPurify",
}


@pytest.mark.parametrize(("word", "node_id"), WORDS.items())
def test_words_that_users_search_for(word, node_id):
    having = [name for name, node in NODE_CLASS_MAPPINGS.items() if word in node.SEARCH_ALIASES]
    assert node_id in having
    assert set(having) <= {node_id, "AntiPureSave"}


def test_cards_are_numbered_and_titled(page):
    browse_templates(page)
    shown = {heading.inner_text() for heading in page.get_by_role("heading").all()}
    assert {path.stem for path in UI_FILES.values()} <= shown


def set_widget(page, node_id: int, name: str, value) -> None:
    page.evaluate(
        "([id, name, value]) => { app.graph.getNodeById(id).widgets.find(w => w.name === name).value = value }",
        [node_id, name, value],
    )


@pytest.mark.parametrize("new_nodes", [False, True], ids=["canvas", "nodes 2.0"])
def test_nodes_do_not_lie_on_each_other(page, server, new_nodes):
    """As large as the frontend draws them, with the example picture in them, on the canvas and in Nodes 2.0."""
    setting = "Comfy.VueNodes.Enabled"
    if new_nodes:
        if not page.evaluate("name => Boolean(app.ui.settings.settingsLookup?.[name])", setting):
            pytest.skip("this frontend has no Nodes 2.0")
        page.evaluate("name => app.extensionManager.setting.set(name, true)", setting)
    try:
        for name in sorted(UI_FILES):
            page.evaluate("graph => app.loadGraphData(graph)", read_ui(name))
            page.evaluate("() => { app.canvas.ds.scale = 0.5; app.canvas.setDirty(true, true) }")
            page.wait_for_timeout(2000)
            overlaps, shown = page.evaluate(OVERLAPS)
            assert overlaps == [], name
            assert bool(shown) == new_nodes
    finally:
        if new_nodes:
            page.evaluate("name => app.extensionManager.setting.set(name, false)", setting)


def test_a_reports_tables_are_drawn(page, server, tmp_path):
    open_template(page, "robustness_report")
    first = read_ui("robustness_report")["extra"]["antipure"]["first_id"]
    purifiers = "gridpure1@2, held_out:gridpure1@2, jpeg75"
    quick = {4: {"steps": 1}, 5: {"steps": 1}, 6: {"purifiers": purifiers, "curve_iterations": 2}}
    for node, values in quick.items():
        for name, value in values.items():
            set_widget(page, first + node, name, value)
    press_run(page, server)
    show = (
        "id => { const node = app.graph.getNodeById(id); app.canvas.ds.scale = 1; app.canvas.centerOnNode(node);"
        " app.canvas.setDirty(true, true) }"
    )
    page.evaluate(show, first + 8)
    table = page.locator("table", has_text="jpeg75").first
    table.wait_for()
    page.screenshot(path=tmp_path / "tables.png")
    assert table.locator("tr").count() >= 3
    stored = page.evaluate("id => app.graph.getNodeById(id).serialize().widgets_values ?? []", first + 8)
    assert not any(stored), "a report is no part of the workflow"
    assert page.errors[page.startup :] == []


def test_an_error_begins_with_its_sentence(page, server):
    """A pixel denoiser has no VAE to go through."""
    open_template(page, "purify")
    first = read_ui("purify")["extra"]["antipure"]["first_id"]
    set_widget(page, first + 3, "method", "vae")
    before = set(server.json("/history"))
    page.get_by_role("button", name="Run", exact=False).first.click()
    while not (new := set(server.json("/history")) - before):
        page.wait_for_timeout(300)
    events = dict(server.json("/history")[new.pop()]["status"]["messages"])
    error = events["execution_error"]
    assert error["exception_type"] == "AntiPureError"
    sentence = error["exception_message"].strip().splitlines()[0]
    details = page.get_by_role("button", name="View details")
    if details.count():  # since 1.4x an overlay first
        details.first.click()
    page.get_by_text(sentence[:40]).first.wait_for()
    text = page.locator("body").inner_text()
    assert sentence in text
    assert "antipure.methods" not in text.split(sentence)[0], "no path of a module before it"


def test_a_saved_picture_dragged_back_opens_its_workflow(page, server):
    open_template(page, "protect_my_picture")
    first = read_ui("protect_my_picture")["extra"]["antipure"]["first_id"]
    set_widget(page, first + 3, "steps", 2)
    set_widget(page, first + 5, "width", 64)
    kept = server.base / "output" / "antipure"  # other tests save there, too
    before = set(kept.glob("*.png"))
    press_run(page, server)
    (saved,) = set(kept.glob("example_protected_*.png")) - before
    drop = (
        "async bytes => { app.graph.clear(); const file = new File([new Uint8Array(bytes)], 'a.png',"
        " {type: 'image/png'}); await app.handleFile(file); return app.graph._nodes.map(n => n.type) }"
    )
    types = page.evaluate(drop, list(saved.read_bytes()))
    assert sorted(types) == sorted(node["type"] for node in read_ui("protect_my_picture")["nodes"])
    steps = page.evaluate("id => app.graph.getNodeById(id).widgets.find(w => w.name === 'steps').value", first + 3)
    assert steps == 2, "the recipe of that very picture"
    assert page.errors[page.startup :] == []


@pytest.mark.parametrize("language", ["fr", "ja"])  # languages that the frontend itself knows
def test_titles_in_the_users_language(page, language):
    page.evaluate("language => app.extensionManager.setting.set('Comfy.Locale', language)", language)
    page.reload(wait_until="domcontentloaded")
    page.wait_for_function("() => window.app?.graph && LiteGraph.registered_node_types.AntiPureProtect")
    texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))["AntiPureProtect"]
    page.wait_for_function(
        "title => LiteGraph.registered_node_types.AntiPureProtect.title === title", arg=texts["display_name"]
    )
