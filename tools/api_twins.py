"""The API twins of the shipped workflows: workflows/api/<name>.json, made from the UI files in workflows/.

    python -m tools.api_twins --check     # says which twins are not what their UI files say; exit 1 if any
    python -m tools.api_twins --write

The UI files are the source: open them in ComfyUI, edit, save them in place. ComfyUI's own nodes that only a server
can run are described in core_nodes.json, in the shape of the server's /object_info; of Train LoRA, whose inputs differ
between versions, it holds those of 0.33, in its order, and the UI files give only what all versions begin with.

The template browser's cards are titled by their files' names, so a UI file's is a title, and its `extra.antipure` has
the name of its twin, which `antipure run` takes. Node ids differ between UI files, by hundreds: ComfyUI addresses what
a node shows while it runs by its id alone, and several workflows may be open. A twin counts its nodes from `first_id`.
Templates are made to be quick, and what only they do stands in the nodes' properties: a node with `antipure`
"template only" is not in the twin, which takes what goes into it; values of `antipure_shell` replace the widgets'.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from antipure.cli.executor import NODES
from antipure.cli.graph import WORKFLOWS
from antipure.methods.errors import AntiPureError
from antipure.nodes import NODE_DISPLAY_NAME_MAPPINGS

CORE_NODES = json.loads(Path(__file__).with_name("core_nodes.json").read_text(encoding="utf-8"))
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4  # litegraph's modes "never" and ComfyUI's "bypass"
LINE = 120


def input_types(kind: str) -> dict[str, tuple]:
    """Name -> (type, options) of a node's inputs, in its own order: required before optional.

    Raises `AntiPureError` for a type that is not known here.
    """
    if kind not in NODES and kind not in CORE_NODES:
        raise AntiPureError(
            f"'{kind}' is no known node: describe it in core_nodes.json; unpack it if it is a subgraph."
        )
    sections = NODES[kind].INPUT_TYPES() if kind in NODES else CORE_NODES[kind]["input"]
    inputs = {**sections.get("required", {}), **sections.get("optional", {})}
    return {name: (given[0], given[1] if len(given) > 1 else {}) for name, given in inputs.items()}


def is_widget(kind: object, options: dict) -> bool:
    """Whether ComfyUI shows an input of this type as a widget on the node, rather than as a socket alone."""
    known = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    return known and not options.get("forceInput")


def widget_values(node: dict) -> dict:
    """The values of a node's widgets by name: `widgets_values` holds them in the order of the node's inputs.

    A value the file lacks is the input's default (a file that is older than the input); those it has beyond the inputs
    are buttons and shown texts, which the server does not get.
    """
    stored = node.get("widgets_values") or []
    if isinstance(stored, dict):
        return {name: stored[name] for name in input_types(node["type"]) if name in stored}
    remaining, named = iter(stored), {}
    for name, (kind, options) in input_types(node["type"]).items():
        if not is_widget(kind, options):
            continue
        first = kind[0] if isinstance(kind, list) and kind else None
        named[name] = next(remaining, options.get("default", first))
        if named[name] is None:
            raise AntiPureError(f"Node {node['id']} ({node['type']}) has no value for '{name}'.")
        if options.get("control_after_generate") or (kind == "INT" and name in ("seed", "noise_seed")):
            next(remaining, None)  # the widget under a seed: fixed, increment, randomize
    return named


def about(workflow: dict, stem: str) -> dict:
    """The `extra.antipure` of a UI workflow: name, first_id. stem: of its file, the name of one that says nothing."""
    return {"name": stem, "first_id": 0, **workflow.get("extra", {}).get("antipure", {})}


def ui_files() -> dict[str, Path]:
    """Name -> path of the UI workflows."""
    paths = sorted(WORKFLOWS.parent.glob("*.json"))
    return {about(json.loads(path.read_text(encoding="utf-8")), path.stem)["name"]: path for path in paths}


def twin(workflow: dict) -> dict:
    """The API twin of a UI workflow: for the shell, without what makes it a template."""
    quick = [node["id"] for node in workflow["nodes"] if node.get("properties", {}).get("antipure") == "template only"]
    bypassed = [{**node, "mode": BYPASSED} if node["id"] in quick else node for node in workflow["nodes"]]
    prompt = to_prompt({**workflow, "nodes": bypassed})
    for node in workflow["nodes"]:
        values = node.get("properties", {}).get("antipure_shell", {})
        if unknown := values.keys() - prompt.get(str(node["id"]), {}).get("inputs", {}).keys():
            raise AntiPureError(f"Node {node['id']} ({node['type']}) has no input '{min(unknown)}' for the shell.")
        if values:
            prompt[str(node["id"])]["inputs"] |= values
    first = about(workflow, "")["first_id"]
    shorter = {node_id: str(int(node_id) - first) for node_id in prompt}

    def shortened(value: object) -> object:
        return [shorter[value[0]], value[1]] if isinstance(value, list) else value

    return {
        shorter[node_id]: {**node, "inputs": {key: shortened(value) for key, value in node["inputs"].items()}}
        for node_id, node in prompt.items()
    }


def to_prompt(workflow: dict) -> dict:
    """The API prompt of a UI workflow (litegraph 0.4), as ComfyUI's frontend makes it when Run is pressed.

    Notes, muted and bypassed nodes, reroutes and primitives send nothing: a wire is followed through reroutes and
    bypassed nodes to its source, and dropped when that is muted. Raises `AntiPureError` for unknown nodes and inputs.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}

    def follow(link: int | None) -> tuple[dict, int] | None:
        """The node and the output where a wire begins."""
        while link is not None:
            _, origin, slot, _, _, kind = links[link]
            node = nodes[origin]
            sockets = node.get("inputs", [])
            if node["type"] == "Reroute":
                link = sockets[0]["link"]
            elif (
                node.get("mode") == BYPASSED
            ):  # the input beside the output if it has the type, else the first that has
                candidates = [socket for socket in [*sockets[slot : slot + 1], *sockets] if socket["type"] == kind]
                link = candidates[0]["link"] if candidates else None
            else:
                return None if node.get("mode") == MUTED else (node, slot)
        return None

    prompt = {}
    for node_id, node in sorted(nodes.items()):
        kind = node["type"]
        if kind in (*NOTES, "Reroute", "PrimitiveNode") or node.get("mode") in (MUTED, BYPASSED):
            continue
        inputs = widget_values(node)
        for socket in node.get("inputs", []):
            source = follow(socket.get("link"))
            if source is not None:
                value = source[0]["widgets_values"][0] if source[0]["type"] == "PrimitiveNode" else None
                inputs[socket["name"]] = [str(source[0]["id"]), source[1]] if value is None else value
        order = list(input_types(kind))
        if unknown := inputs.keys() - set(order):
            raise AntiPureError(f"Node {node_id} ({kind}) has no input '{min(unknown)}'.")
        title = node.get("title") or NODE_DISPLAY_NAME_MAPPINGS.get(kind, kind)
        ordered = {name: inputs[name] for name in order if name in inputs}
        prompt[str(node_id)] = {"class_type": kind, "_meta": {"title": title}, "inputs": ordered}
    return prompt


def to_text(prompt: dict) -> str:
    """The file's text: three lines a node; inputs stand below each other where a line would grow too long."""

    def line(entries: dict) -> str:
        return f"{{ {json.dumps(entries, ensure_ascii=False)[1:-1]} }}"

    texts = []
    for node_id, node in prompt.items():
        inputs = line(node["inputs"])
        if len(inputs) + len('    "inputs": ') > LINE:
            rows = (f"{json.dumps(name)}: {json.dumps(v, ensure_ascii=False)}" for name, v in node["inputs"].items())
            inputs = "{\n      " + ",\n      ".join(rows) + "\n    }"
        head = f'  "{node_id}": {{\n    "class_type": {json.dumps(node["class_type"])},\n'
        texts.append(f'{head}    "_meta": {line(node["_meta"])},\n    "inputs": {inputs}\n  }}')
    return "{\n" + ",\n".join(texts) + "\n}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 when a twin is not what its UI file says")
    action.add_argument("--write", action="store_true", help="write every twin")
    writes, stale = parser.parse_args(arguments).write, 0
    for name, source in ui_files().items():
        try:
            text = to_text(twin(json.loads(source.read_text(encoding="utf-8"))))
        except AntiPureError as error:
            raise SystemExit(f"workflows/{source.name}: {error}") from error
        path = WORKFLOWS / f"{name}.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale += 1
            print(f"workflows/api/{path.name}", "is written." if writes else "is not what its UI file says.")
            if writes:
                path.write_text(text, encoding="utf-8")
    return 1 if stale and not writes else 0


if __name__ == "__main__":
    raise SystemExit(main())
