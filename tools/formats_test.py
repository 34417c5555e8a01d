#!/usr/bin/env python3
"""Holds the JSON Schemas of the four formats to what moegate reads and writes.

usage: tools/formats_test.py MOEGATE

Every case and golden file of the clone, every example of the pages, and manifests and results that moegate writes are
of their schemas. Then each is changed in one place at a time: a key removed, an unknown key added, a value of another
type, a number beyond its range, a word that is none of those listed. Schema and reader must say the same of it. Where
only the reader refuses, since what is wrong takes more than one key to see, its sentence must be one of SEMANTIC; and
each of those must have been seen, so that the list grows no older than the reader.
"""
import copy
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import jsonschema

MOEGATE = ""
ROOT = pathlib.Path(__file__).resolve().parent.parent
REMOVED = object()
UNKNOWN = "no_such_key"
# With two planted faults.
STEP = "issues/torchtitan-2387@tp2.ep2.etp1"
# Of causes that have evidence of their own.
FAULTS = ("drop d_gate_ED@tp", "repeat d_gate_ED@tp", "scale 1.001 d_w1_EFD", "permute experts d_w1_EFD",
          "round d_w2_EDF", "stale-rank 1 d_gate_ED", "nan d_gate_ED", "corrupt d_w1_EFD", "leak-slots",
          "scale 2 tokens_per_expert_E", "model score_placement", "shuffle-rows")
PAGES = {"case": "cases/README.md", "golden": "golden/README.md", "manifest": "harness/dump/README.md",
         "results": "harness/report/README.md"}

# What the reader refuses and no schema can: a part of its sentence, and why that takes more than one key.
SEMANTIC = {
    "case": {
        "must be a whole number": "1.0 is whole to a schema; a file says 1",
        "is more than experts": "top_k and experts",
        "does not divide": "groups and experts, layouts and sizes",
        "is more than expert_groups": "limited_groups and expert_groups",
        "must be a whole number from 0 to": "idle_experts and experts",
        "is no fault": "the language of faults",
        "is no reduction": "the language of faults",
        "is not a result of this model": "must_catch names a tensor that the model has",
        "does not exist here": "a fault and the contract of its layout",
    },
    "golden": {
        "must be a whole number": "1.0 is whole to a schema; a file says 1",
        "is stale": "the case file as it is",
        "lacks": "every result of the model in every dtype of the case",
        "times above the noise floor": "tolerance and noise floor",
        "times below the fault floor": "tolerance and fault floor",
        "the numbers beside it give": "what follows from two numbers",
    },
    "manifest": {
        "must be a whole number": "1.0 is whole to a schema, a file says 1; token lists and tokens",
        "sizes for": "as many sizes as axes",
        "both are views of the same ranks": "the products of both meshes",
        "makes a world of": "the product of a mesh",
        "mesh gives": "layout and meshes",
        "is not an axis of this": "placements and the mesh of the tensor",
        "is more than experts": "top_k and experts",
        "the model gives": "shapes and model",
        "is not a tensor": "tensors, casts, not_dumped, missing and model",
        "no rank holds token": "tokens of all ranks together",
        "differ only along": "tokens and placements",
        "must have one for each": "tokens and the world",
    },
}


def load_schema(path):
    """The schema with references to other files replaced by their content, so that it stands alone."""
    def inline(value):
        if isinstance(value, dict):
            reference = value.get("$ref", "#")
            if not reference.startswith("#"):
                return load_schema(path.parent / reference)
            return {key: inline(child) for key, child in value.items()}
        return [inline(child) for child in value] if isinstance(value, list) else value
    return inline(json.loads(path.read_text()))


SCHEMAS = {name: load_schema(ROOT / path) for name, path in {
    "case": "harness/spec/case.schema.json",
    "golden": "harness/measure/golden.schema.json",
    "manifest": "harness/dump/manifest.schema.json",
    "results": "harness/report/results.schema.json"}.items()}


def resolve(schema, root):
    """`schema` without the references at its top."""
    while "$ref" in schema:
        target = root
        for token in schema["$ref"].removeprefix("#/").split("/"):
            target = target[token]
        schema = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema


def places(value, schema, root, path=(), general=()):
    """Every value of a document: its path, the path without names and numbers that are data, its schema."""
    schema = resolve(schema, root)
    yield path, general, value, schema
    if isinstance(value, dict):
        for key, child in value.items():
            known = schema.get("properties", {})
            name, of_child = (key, known[key]) if key in known else ("*", schema["additionalProperties"])
            yield from places(child, of_child, root, path + (key,), general + (name,))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from places(child, schema["items"], root, path + (index,), general + ("*",))


def other_values(value, schema):
    """What may stand in place of a value to see whether somebody looks: (what it is, the value)."""
    for other in (None, True, 3, 0.5, "nonsense", "", [], {}, [[]], {"a": {}}):
        if type(other) is not type(value):
            yield f"{json.dumps(other)} in place of a value", other
    if isinstance(value, int) and not isinstance(value, bool):
        yield "a whole number with a fraction of 0", float(value)
    for word in schema.get("enum", []):
        yield f"the word {word}", word
    if isinstance(value, str):
        yield "another word", "nonsense"
        yield "no text", ""
        yield "text around it", f" {value}x"
    for key, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", -1)):
        if key in schema and isinstance(value, (int, float)):
            yield f"the {key}", schema[key]
            yield f"beyond the {key}", schema[key] + step
    if "const" in schema.get("not", {}):
        yield "the number that may not be", schema["not"]["const"]
    if isinstance(value, list):
        yield "no items", []
        if value:
            yield "an item twice", value + value[:1]
        if "maxItems" in schema:
            yield "more items than there may be", (value or [1]) * (schema["maxItems"] + 1)
    if isinstance(value, dict) and "properties" not in schema:
        yield "no entries", {}


def changed(document, path, value):
    """A copy of the document with another value at `path`, or without it."""
    if not path:
        return value
    copied = copy.deepcopy(document)
    parent = copied
    for token in path[:-1]:
        parent = parent[token]
    if value is REMOVED:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return copied


def mutations(document, schema, seen):
    """(what was done, the changed document, the keys that the schema knows where one was added), but for what was done
    at the same place of another document."""
    for path, general, value, of_value in places(document, schema, schema):
        done = []
        if path and isinstance(path[-1], str):
            done.append(("removed", REMOVED))
        done += other_values(value, of_value)
        if isinstance(value, dict):
            done.append(("an unknown key", {**value, UNKNOWN: next(iter(value.values()), 1)}))
        for what, other in done:
            # A number that is the same may be written in another way; anything else that is the same is no change.
            same = other is not REMOVED and type(other) is type(value) and other == value
            if not same and (general, what) not in seen:
                seen.add((general, what))
                known = of_value.get("properties") if what == "an unknown key" else None
                yield f"{what} at /{'/'.join(map(str, path))}", changed(document, path, other), known


def files_of(folder):
    return [(path.relative_to(ROOT).as_posix(), json.loads(path.read_text()))
            for path in sorted((ROOT / folder).rglob("*.json"))]


def examples(page):
    """The JSON blocks of a page."""
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)]


class FormatsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def moegate(self, *arguments):
        return subprocess.run([MOEGATE, *arguments], cwd=self.folder, check=False, capture_output=True, text=True,
                              timeout=300)

    def has_step(self):
        return "MOEGATE_STEP=OFF" not in self.moegate("run", "no/such-case").stderr

    def validator(self, name):
        return jsonschema.Draft202012Validator(SCHEMAS[name])

    def assertIsOf(self, name, document, where):
        errors = [f"{error.json_path}: {error.message}" for error in self.validator(name).iter_errors(document)]
        self.assertEqual(errors, [], f"{where} is not of its schema")

    def assertAgree(self, name, documents, ask):
        """Schema and reader say the same of `documents`, pairs of a name and what is in it, and of all that is one
        change away. `ask` gives for such pairs what the reader says, None where it accepts."""
        seen = set()
        tried: list[tuple[str, object, str, dict | None]] = []
        for file, document in documents:
            tried.append((file, document, "", None))
            tried += [(file, other, " with " + what, known)
                      for what, other, known in mutations(document, SCHEMAS[name], seen)]
        validator = self.validator(name)
        used = set()
        disagree = []
        told = ask([(file, document) for file, document, _, _ in tried])
        for (file, document, what, known), sentence in zip(tried, told, strict=True):
            error = next(validator.iter_errors(document), None)
            said = re.search(r"(?:known are|use) (.*)$", sentence or "")
            if error is None and sentence is not None:
                reasons = [part for part in SEMANTIC[name] if part in sentence]
                used.update(reasons)
                if not reasons or not what:
                    disagree.append(f"{file}{what}: only the reader refuses: {sentence}")
            elif error is not None and sentence is None:
                disagree.append(f"{file}{what}: only the schema refuses: {error.json_path}: {error.message}")
            elif known and (not said or set(re.split(", | or ", said[1])) != set(known)):
                disagree.append(f"{file}{what}: the schema knows {', '.join(known)}; the reader says: {sentence}")
        if disagree:
            self.fail("\n".join([f"{len(disagree)} of {len(tried)}:", *disagree[:30]]))
        self.assertEqual(set(SEMANTIC[name]) - used, set(), "exceptions that no change meets any more")
        print(f"{name}: {len(documents)} files, {len(tried) - len(documents)} changes", file=sys.stderr)

    def ask_cases(self, documents):
        case = self.folder / "cases/a.json"
        case.parent.mkdir()
        for _, document in documents:
            case.write_text(json.dumps(document))
            done = self.moegate("list", "--cases", "cases")
            yield done.stderr.strip() if done.returncode else None

    def ask_goldens(self, documents):
        for file, document in documents:
            golden = self.folder / file
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(json.dumps(document))
            case = file.removeprefix("golden/").removesuffix(".json")
            done = self.moegate("explain", case, "--cases", str(ROOT / "cases"), "--golden", "golden")
            self.assertEqual(done.returncode, 0, done.stderr)
            said = re.search("no tolerances: (.*)", done.stdout)
            yield said[1] if said else None

    def ask_manifests(self, documents):
        """Of folders with nothing but a manifest: who reads it to its end misses the file of rank 0."""
        names = [f"dump{number:04}" for number in range(len(documents))]
        for name, (_, document) in zip(names, documents, strict=True):
            (self.folder / name).mkdir()
            (self.folder / name / "manifest.json").write_text(json.dumps(document))
        told = json.loads(self.moegate("check", *names, "--json").stdout)
        for name, result in zip(names, told["results"], strict=True):
            self.assertEqual((result["id"], result["verdict"]), (name, "error"))
            missing = f"{name}/rank-00000.safetensors: does not exist"
            yield None if result["text"].startswith(missing) else result["text"]

    def test_schemas_are_schemas(self):
        for schema in SCHEMAS.values():
            jsonschema.Draft202012Validator.check_schema(schema)

    def test_examples_of_the_pages_are_of_their_schemas(self):
        for name, page in PAGES.items():
            self.assertTrue(examples(page), page)
            for example in examples(page):
                self.assertIsOf(name, example, page)

    def test_cases(self):
        self.assertAgree("case", files_of("cases"), self.ask_cases)

    def test_goldens(self):
        self.assertAgree("golden", files_of("golden"), self.ask_goldens)

    def test_manifests(self):
        documents = [(page, example) for page in [PAGES["manifest"]] for example in examples(page)]
        if self.has_step():
            self.moegate("run", STEP, "--dtype=bfloat16", "--dump", "kept")
            documents += [(str(path.relative_to(self.folder)), json.loads(path.read_text()))
                          for path in sorted(self.folder.glob("kept/**/manifest.json"))]
            self.assertGreater(len(documents), 2)
        self.assertAgree("manifest", documents, self.ask_manifests)

    def test_results(self):
        """What moegate writes is of the schema, which has no place where just anything may stand."""
        self.moegate("inputs", "smoke/smoke", "--out", "problem")
        written = [self.moegate("check", "problem", "--json").stdout]
        if self.has_step():
            written = [self.moegate("run", "smoke/*", STEP, "--json").stdout,
                       self.moegate("run", STEP, "--backend=nccl", "--dtype=float32", "--json").stdout]
            run_it = ("run", STEP, "--dtype=float32", "--json", "--dump", "kept")
            written += [self.moegate(*run_it, f"--fault={fault}").stdout for fault in FAULTS]
            dumps = [str(path.parent) for path in self.folder.glob("kept/**/manifest.json")]
            written.append(self.moegate("check", "problem", *dumps, "--json").stdout)
        documents = [json.loads(text) for text in written]
        for document in documents:
            self.assertIsOf("results", document, "what moegate writes")
        seen = set()
        validator = self.validator("results")
        loose = []
        for document in documents:
            for what, other, _ in mutations(document, SCHEMAS["results"], seen):
                if re.match(r'\[\[\]\]|{"a"|an unknown key', what) and validator.is_valid(other):
                    loose.append(what)
        self.assertEqual(loose, [])


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    MOEGATE = str(pathlib.Path(sys.argv.pop(1)).resolve())
    unittest.main()
