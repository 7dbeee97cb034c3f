"""Plain language: words and constructions that a reader of the field would have to translate, and what to say instead."""

import ast
import functools
import io
import json
import re
import tokenize

from tests.conftest import ROOT

# In docstrings, comments, messages, YAML and pages, in capitals or not.
SENTENCES = {
    r"pictures?|photographs?": "image",
    r"(?<!prepare )(?!(?-i:Folder\b))folders?": "directory",  # `Folder` is a class, and `prepare folder` prepares its data
    r"verbs?": "command",
    r"strata|stratum": "stratified by ...; bins",
    r"anew": "again; with new random weights",
    r"thaw(s|ed|ing)?": "unfreeze",
    r"nobody('s)?": "no user, no process, no paper: name who",
    r"so many": "the number's name: n images, `seeds` seeds",
    r"of none|(?<!there )(?-i:(is|are) none)": "is missing, is not one of ...",
    r"(?-i:lies|lie|lay)": "is, is stored",
    r"beside": "next to, with, in addition to; a sidecar file",
    r"whole or not at all": "atomically",
    r"(?<!there )(?<!there\n)(?:is|are|was|were) no(?= (?!longer\b))": "is not a ...; no class has ...",
    r"numbers of": "the number of ... of each ...; counts",
    r"to the letter": 'original, released, form="authors"',
    r"as (it is|they are) meant": "say how",
    r"subtracted from the image|lessened": "normalization (mean, std)",
    r"left over": "unexpected (tensors), remaining",
    r"what it costs": "throughput, latency, memory",
    r"looks? at an image": "inference strategy",
    r"hand(s|ed)? (over|on)": "pass; skip connection; export",
    r"go(es)? on": "continue",
    r"in the place of": "instead of, as",
    r"from [01] on": "at least 1, positive",
    r"(is|are) not there": "is missing",
    r"(?-i:Error: (It|They|One)\b)": "state the condition: what is missing, damaged or invalid",
}
# The first word of a docstring that leaves its subject out ("What a network takes"): name the object. "Whether" begins flags.
SUBJECTLESS = r"What|Whether|Where|When|How|Why|Who|Whose|Which|So|As|Of|That|Those"
# The first word of an argument's description that leaves its subject out ("seed: Of the run."): name what the argument is.
FRAGMENTS = r"Of|With|Such|In|As|By|After|Before|From|Above|Another's|What|Where|How|Which|Whose|Who|Its|Their|That|These|At"
# Variables that do not tell what they hold.
VARIABLES = {
    "one", "own", "here", "said", "held", "taken", "mine", "gone", "it", "them", "thing", "found", "given", "made", "what",
    "which", "how", "why",
}  # fmt: skip
# Parts of names. "strata" stays there: `Evaluation.strata` is stored as NAME.strata.parquet.
NAMES = {
    "picture": "image", "pictures": "images", "photograph": "image", "folder": "directory", "folders": "directories",
    "verb": "command", "verbs": "commands", "thaw": "unfreeze", "anew": "again", "beside": "sidecar", "lies": "path",
    "refuse": "check, require", "nobody": "none",
}  # fmt: skip
# Functions are verb + object: the first word is neither a participle (these, and those in -ed) nor an adverb.
NO_VERBS = (
    r"\w+ed|said|chosen|found|made|given|taken|held|seen|kept|known|left|lost|shown|told|written|drawn|done|gone|beside|apart|"
    r"within|here|there|whole|alone|own|one|theirs|ours|mine"
)
# Exceptions, with the reason.
KEPT_NAMES = {
    "Folder": "users' files name the class",
    "folder": "users' files name the option of CachedFrontEnd",
    "done": "submitit's jobs have this method",
}
KEPT_VARIABLES = {"here": "the difference on the pixels that a claim names: Verdict.here"}
KEPT_PHRASES = (
    r"camvid, folder, \.\.\.|^folder: |goes with folder",  # `dilated-seg prepare folder`, and an option of it
    r"\{folder: ",  # CachedFrontEnd.folder in YAML
    r"\(stratum \* num_classes",  # in the metadata of stored files
)
FILES = [
    path
    for pattern in (
        "dilated_seg/**/*.py",
        "experiments/*.yaml",
        "experiments/[!r]*/**/*.[py]*",
        "docs/**/*.md",
        "docs/*.py",
        "notebooks/*.ipynb",
        "*.md",
    )
    for path in sorted(ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"
    and "results" not in path.relative_to(ROOT).parts
    and path.suffix in (".py", ".yaml", ".md", ".ipynb")
]
CODE = [path for path in FILES if path.suffix == ".py"]


def blank(match):
    """Return the white space that keeps the lines of a text that is left out."""
    return re.sub(r"[^\n]", " ", match[0])


@functools.cache
def parse(path):
    """Return all nodes of a Python file, and its docstrings by the node that each documents."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    documented = [node for node in nodes if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    return nodes, {node: node.body[0].value for node in documented if ast.get_docstring(node, clean=False)}


def is_property(function):
    names = {ast.unparse(decorator).split(".")[-1] for decorator in function.decorator_list}
    return bool(names & {"property", "cached_property", "setter"})


def list_python_sentences(path):
    """Yield the line and the text of comments, and of strings of more than a word."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    nodes, docstrings = parse(path)
    documents = set(docstrings.values())
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            # The names of arguments ("    folder: The directory.") are checked as names.
            arguments = r"^ +\*{0,2}[a-z]\w*:|``\w+``" if node in documents else r"(?!)"
            yield node.lineno, re.sub("|".join((arguments, *KEPT_PHRASES)), blank, node.value, flags=re.M)


def list_sentences(path):
    """Return pairs of a line and a text: all that a file says in words, without code and links."""
    if path.suffix == ".py":
        return list(list_python_sentences(path))
    text = path.read_text("utf-8")
    if path.suffix == ".yaml":
        return [(1, re.sub(r"^[ -]*[\w.]+:", blank, text, flags=re.M))]
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return [(1, re.sub(r"```.*?```|`[^`\n]*`|\]\([^)]*\)", blank, text, flags=re.S))]


def list_names(path):
    """Yield the line and the name of functions, classes and arguments, and whether it is a function's."""
    for node in parse(path)[0]:
        if isinstance(node, ast.FunctionDef):
            yield node.lineno, node.name, not is_property(node)
        elif isinstance(node, ast.ClassDef):
            yield node.lineno, node.name, False
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg, False


def test_sentences_use_the_words_of_the_field():
    table = {re.compile(rf"(?<![\w./-])(?:{words})(?!\w|\.\w)", re.I): instead for words, instead in SENTENCES.items()}
    some = re.compile("|".join(SENTENCES), re.I)  # most files have no such word at all
    problems = [
        f"{path.relative_to(ROOT)}:{line + text.count(chr(10), 0, match.start())}: {match[0]!r}: say {instead}"
        for path in FILES
        if some.search(path.read_text("utf-8"))
        for line, text in list_sentences(path)
        if some.search(text)
        for words, instead in table.items()
        for match in words.finditer(text)
    ]
    assert not problems, "\n".join(problems)


def test_docstrings_begin_with_their_object():
    problems = []
    for path in CODE:
        for node, docstring in parse(path)[1].items():
            first = docstring.value.split(maxsplit=1)[0]
            is_flag = first == "Whether" and isinstance(node, ast.FunctionDef) and is_property(node)
            if re.fullmatch(SUBJECTLESS, first) and not is_flag:
                problems.append(f"{path.relative_to(ROOT)}:{docstring.lineno}: {docstring.value[:60]!r}: name the object first")
    assert not problems, "\n".join(problems)


def test_descriptions_of_arguments_begin_with_their_object():
    problems = []
    for path in CODE:
        for docstring in parse(path)[1].values():
            for section in re.findall(
                r"^ *(?:Args|Attributes):\n(.*?)(?=^ *(?:Raises|Returns|Yields):|\Z)", docstring.value, re.M | re.S
            ):
                found = re.findall(rf"^ +\*{{0,2}}\w+: (?:{FRAGMENTS})\b.*", section, re.M)
                problems += [f"{path.relative_to(ROOT)}: {line.strip()!r}: name the object first" for line in found]
    assert not problems, "\n".join(problems)


def test_variables_say_what_they_hold():
    problems = []
    for path in (path for path in CODE if path.is_relative_to(ROOT / "dilated_seg")):
        for node in parse(path)[0]:
            name = node.arg if isinstance(node, ast.arg) else node.id if isinstance(node, ast.Name) else ""
            if name in VARIABLES and name not in KEPT_VARIABLES:
                problems.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}: name what it holds")
    assert not problems, "\n".join(problems)


def test_names_use_the_words_of_the_field_and_functions_begin_with_a_verb():
    problems = []
    for path in CODE:
        for line, name, is_function in list_names(path):
            words = [word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+", name)]
            where = f"{path.relative_to(ROOT)}:{line}: {name}"
            problems += [f"{where}: say {NAMES[word]}" for word in words if word in NAMES and name not in KEPT_NAMES]
            if is_function and words and re.fullmatch(NO_VERBS, words[0]) and name not in KEPT_NAMES:
                problems.append(f"{where}: begin with a verb")
    assert not problems, "\n".join(problems)
