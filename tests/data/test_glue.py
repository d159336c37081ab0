"""Do all nine GLUE tasks come in with their quirks, and go out as GLUE wants them?"""

import zipfile

import numpy as np
import pytest
from real_data import DATA, needs_data

from autodistill_jax.data import glue, tasks
from autodistill_jax.errors import UserError

SINGLE = 'sentence\tlabel\na "good" one\t1\nbad\t0\n'
PAIRS = "index\tsentence1\tsentence2\tlabel\n0\tA b.\tC d.\t"
QUORA = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
SCORES = (
    "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
)
MNLI = "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\t"
MNLI_ROW = "0\t1\t1n\tfiction\tA b.\tC d.\tneutral\t"
PARAPHRASE = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


@pytest.fixture
def put(tmp_path):
    """Writes files into a task's folder; gives the root."""

    def write(folder, **files):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name, text in files.items():
            ending = ".txt" if name.startswith("msr") else ".tsv"
            path = tmp_path / folder / (name + ending)
            path.write_bytes(text.encode())
        return str(tmp_path)

    return write


@needs_data
@pytest.mark.parametrize(
    "name, sizes",
    {
        "cola": (8551, 1043, 1063),
        "sst2": (67349, 872, 1821),
        "rte": (2490, 277, 3000),
        "stsb": (5749, 1500, 1379),
        "wnli": (635, 71, 146),
    }.items(),
)
def test_the_real_files(name, sizes):
    task = glue.load_glue_task(name, str(DATA / "glue"))
    (tests,) = task.test_texts.values()
    assert (len(task.train[0]), len(task.dev[0]), len(tests)) == sizes
    # STS-B's labelled test rows lie beside it, of the original split.
    extra_sizes = {side: len(texts) for side, (texts, _) in task.extra_dev.items()}
    assert extra_sizes == ({"test": 1379} if name == "stsb" else {})
    assert not task.notes
    if name == "cola":
        assert task.dev[0][0] == "The sailors rode the breeze clear of the rocks."
        assert tests[0] == "Bill whistled past the house."


@needs_data
def test_a_folder_without_training_rows():
    with pytest.raises(UserError, match=r"QNLI lacks train\.tsv; put what is missing"):
        glue.load_glue_task("qnli", str(DATA / "glue"))


def test_cola_has_a_header_in_its_test_file_only(put):
    rows = 'gj04\t1\t\tThey "left.\ngj04\t0\t*\tLeft they.\n'
    root = put("CoLA", train=rows, dev=rows, test="index\tsentence\n0\tA b.\n")
    task = glue.load_glue_task("cola", root)
    assert task.train == task.dev == (['They "left.', "Left they."], [1, 0])
    assert task.test_texts == {"CoLA": ["A b."]} and task.metric == "matthews"


def test_carriage_returns_and_a_byte_order_mark(put):
    text = "\ufeff" + SINGLE.replace("\n", "\r\n")
    task = glue.load_glue_task("sst2", put("SST-2", train=text, dev=text))
    assert task.dev == (['a "good" one', "bad"], [1, 0])
    assert task.test_texts == {} and task.classes == 2


def test_scores(put):
    row = "\n0\tg\tf\ty\t1\ts\ts\tA b.\tC d."
    files = {"train": f"{SCORES}\tscore{row}\t3.800\tone cell more\n"}
    files |= {"dev": f"{SCORES}\tscore{row}\t0.5\n", "test": f"{SCORES}{row}\n"}
    task = glue.load_glue_task("stsb", put("STS-B", **files))
    assert task.train == ([("A b.", "C d.")], [3.8]) and task.dev[1] == [0.5]
    assert (task.classes, task.labels) == (1, ())
    for score, message in (
        ("five", "label 'five' is not a number"),
        ("nan", "label 'nan' is not finite"),
        ("7.5", r"score '7\.5' is outside STS-B's 0 to 5"),
    ):
        put("STS-B", dev=f"{SCORES}\tscore{row}\t{score}\n")
        with pytest.raises(UserError, match=rf"dev\.tsv, line 2: {message}"):
            glue.load_glue_task("stsb", put("STS-B"))


def test_mrpc_in_glues_files(put):
    rows = PARAPHRASE + '1\t7\t8\tHe said "no.\tHe said no.\n'
    test = "\ufeffindex\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\tA.\tB.\n"
    task = glue.load_glue_task("mrpc", put("MRPC", train=rows, dev=rows, test=test))
    assert task.dev == ([('He said "no.', "He said no.")], [1])
    assert task.test_texts == {"MRPC": [("A.", "B.")]} and not task.notes


def test_mrpc_in_microsofts_files(put, tmp_path):
    rows = [f"{i % 2}\t{i}\t{i + 1}\tFirst {i}.\tSecond {i}.\r\n" for i in range(100)]
    original = PARAPHRASE + "".join(rows)
    root = put("MRPC", msr_paraphrase_train=original, dev_ids="4\t5\r\n7\t8\r\n9\t9")
    task = glue.load_glue_task("mrpc", root)
    assert task.dev == ([("First 4.", "Second 4."), ("First 7.", "Second 7.")], [0, 1])
    assert len(task.train[0]) == 98 and task.test_texts == {} and not task.notes
    put("MRPC", dev_ids="no\tsuch ids\n", msr_paraphrase_test=original)
    with pytest.raises(UserError, match=r"100 training and 0 dev rows with dev_ids"):
        glue.load_glue_task("mrpc", root)
    (tmp_path / "MRPC" / "dev_ids.tsv").unlink()
    task = glue.load_glue_task("mrpc", root)
    assert 3 < len(task.dev[0]) < 20 and len(task.train[0] + task.dev[0]) == 100
    assert task.dev == glue.load_glue_task("mrpc", root).dev
    assert len(task.test_texts["MRPC"]) == 100
    assert len(task.notes) == 1 and "has no dev_ids.tsv" in task.notes[0]


def test_mnli_has_two_dev_and_two_test_sides(put):
    annotated = MNLI + "label2\tgold_label\n" + MNLI_ROW + "entailment\t"
    files = {
        "train": f"{MNLI}gold_label\n{MNLI_ROW}contradiction\n",
        "dev_matched": f"{annotated}neutral\n",
        "dev_mismatched": f"{annotated}entailment\n",
        "test_matched": f"{MNLI[:-8]}\n{MNLI_ROW[:-9]}\n",
        "test_mismatched": f"{MNLI[:-8]}\n{MNLI_ROW[:-9]}\n",
    }
    root = put("MNLI", **files)
    assert list(glue.load_glue_task("mnli", root).test_texts) == ["MNLI-m", "MNLI-mm"]
    put("diagnostic", diagnostic="index\tsentence1\tsentence2\n0\tE.\tF.\n")
    task = glue.load_glue_task("mnli", root)
    assert task.labels == ("entailment", "neutral", "contradiction")
    assert (task.train[1], task.dev[1]) == ([2], [1])
    assert task.extra_dev == {"mismatched": ([("A b.", "C d.")], [0])}
    assert (
        list(task.test_texts)
        == ["MNLI-m", "MNLI-mm", "AX"]
        == list(glue.submission_keys("mnli"))
    )
    assert task.test_texts["AX"] == [("E.", "F.")]
    said = ["CONTRADICTION", "ENTAILMENT", "NEUTRAL"]
    task = glue.load_glue_task("mnli", put("MNLI"), label_names=said)
    assert task.labels == ("contradiction", "entailment", "neutral")
    assert (task.train[1], task.dev[1], task.extra_dev["mismatched"][1]) == (
        [0],
        [2],
        [1],
    )
    text = glue.submission_text(task, "MNLI-mm", np.array([2]))
    assert text == "index\tprediction\n0\tneutral\n"


def test_qqp_drops_its_broken_rows_and_says_so(put):
    complete = '1\t2\t3\tWhy "so?\tWhy?\t1\n'
    broken = QUORA + complete + "2\t3\t4\tCut in\ntwo?\tWhy?\t0\n5\t6\t7\tA?\tB?\t\n"
    files = {"train": broken, "dev": QUORA + complete}
    root = put("QQP", **files, test="id\tquestion1\tquestion2\n0\tA?\tB?\n")
    task = glue.load_glue_task("qqp", root)
    assert task.train == task.dev == ([('Why "so?', "Why?")], [1])
    (note,) = task.notes
    assert note.endswith("train.tsv: dropped 3 rows that lack columns")
    put("QQP", test="id\tquestion1\tquestion2\n0\tA?\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 2: 2 columns, needed 3"):
        glue.load_glue_task("qqp", root)
    with pytest.raises(UserError, match="orders the classes of qqp as 1, 0, but F1"):
        glue.load_glue_task("qqp", root, label_names=("1", "0"))


@pytest.mark.parametrize("name, folder", [("rte", "RTE"), ("qnli", "QNLI")])
def test_labels_that_are_words(put, name, folder):
    header = PAIRS
    if name == "qnli":
        header = PAIRS.replace("sentence1\tsentence2", "question\tsentence")
    root = put(folder, train=header + "entailment\n", dev=header + "not_entailment\n")
    task = glue.load_glue_task(name, root)
    assert (task.train[1], task.dev) == ([0], ([("A b.", "C d.")], [1]))
    put(folder, dev=header + "maybe\n")
    expected = r"dev\.tsv, line 2: label 'maybe' is none of entailment, not_entailment"
    with pytest.raises(UserError, match=expected):
        glue.load_glue_task(name, root)


def test_refusals(put):
    root = put("SST-2", train=SINGLE, dev="sentence\tlabel\ngood\t1\nno label\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 3: 1 columns, needed 2"):
        glue.load_glue_task("sst2", root)
    put("SST-2", dev="sentence\tlabel\ngood\t2\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 2: label '2' is none of 0, 1"):
        glue.load_glue_task("sst2", root)
    put("SST-2", dev="")
    with pytest.raises(UserError, match=r"dev\.tsv is empty"):
        glue.load_glue_task("sst2", root)
    put("SST-2", dev="sentence\tlabel\n")
    with pytest.raises(UserError, match=r"dev\.tsv has no rows"):
        glue.load_glue_task("sst2", root)
    for name, expected in (
        ("wnli", r"WNLI lacks train\.tsv, dev\.tsv; put"),
        ("mnli", r"MNLI lacks train\.tsv, dev_matched\.tsv, dev_mismatched\.tsv; put"),
        ("mrpc", r"dev\.tsv \(or msr_paraphrase_train\.txt and dev_ids\.tsv in place"),
    ):
        with pytest.raises(UserError, match=expected):
            glue.load_glue_task(name, root)
    with pytest.raises(UserError, match="finetune.glue_dir is empty .*download=True"):
        glue.load_glue_task("sst2")


def test_the_order_of_the_labels_is_the_teachers():
    labels = ("entailment", "neutral", "contradiction")
    for said, expected in (
        (None, labels),
        ((), labels),
        (("LABEL_0", "LABEL_1", "LABEL_2"), labels),
        (("entailment", "not_entailment"), labels),
        (("negative", "neutral", "positive"), labels),
        (("Neutral", "contradiction", "ENTAILMENT"), (labels[1], labels[2], labels[0])),
    ):
        assert glue.label_order(labels, said) == expected
    assert glue.label_order((), ("LABEL_0",)) == ()
    for said in (("entailment", "neutral", "other"), (labels[0], labels[0], labels[1])):
        with pytest.raises(UserError, match="task's are entailment, neutral, contra"):
            glue.label_order(labels, said)


def test_submissions():
    side = ([], [])
    task = tasks.Task(
        "x", side, side, 1, "pearson_spearman", test_texts={"STS-B": ["a"] * 3}
    )
    text = glue.submission_text(task, "STS-B", [-0.2, 2.34567, 5.4])
    assert text == "index\tprediction\n0\t0.000\n1\t2.346\n2\t5.000\n"
    with pytest.raises(ValueError, match="rows"):
        glue.submission_text(task, "STS-B", [1.0])


def test_tensorflow_datasets(tmp_path, monkeypatch, server):
    """Fetched, unpacked and read as from the network, in the order of the files."""
    from tensorflow_datasets.text.glue import Glue

    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    cell = '0\t1\t1n\tfiction\tA "{0}.\tC d.\tneutral\t'
    columns = MNLI + "gold_label\n"
    order = ("neutral", "contradiction", "entailment") * 10
    rows = [cell.format(i) + label for i, label in enumerate(order)]
    unlabelled = [row.rpartition("\t")[0] for row in rows]
    archive = tmp_path / "web" / "not-yet.zip"
    with zipfile.ZipFile(archive, "w") as into:
        for stem in ("train", "dev_matched", "dev_mismatched"):
            text = columns + "\n".join(rows[: 3 if stem == "dev_mismatched" else 30])
            into.writestr(f"MNLI/{stem}.tsv", text)
        for stem in ("test_matched", "test_mismatched"):
            text = MNLI[:-1] + "\n" + "\n".join(unlabelled)
            into.writestr(f"MNLI/{stem}.tsv", text)
    configs = {config.name: config for config in Glue.BUILDER_CONFIGS}
    for name, file in (("mnli", "MNLI.zip"), ("ax", "diagnostic.tsv")):
        monkeypatch.setattr(configs[name], "data_url", f"{server}/{file}")
    with pytest.raises(UserError, match=r"cannot be fetched \(.*404.*\); set finetune"):
        glue.load_glue_task("mnli", download=True)
    archive.rename(archive.with_name("MNLI.zip"))
    task = glue.load_glue_task("mnli", download=True)
    assert task.train == task.dev
    assert task.dev[0] == [(f'A "{i}.', "C d.") for i in range(30)]
    assert task.dev[1] == [1, 2, 0] * 10
    assert task.extra_dev == {"mismatched": (task.dev[0][:3], [1, 2, 0])}
    assert task.test_texts == {"MNLI-m": task.dev[0], "MNLI-mm": task.dev[0]}
    apart = "index\tsentence1\tsentence2\n0\tE.\tF.\n1\tG.\tH.\n"
    (tmp_path / "web" / "diagnostic.tsv").write_text(apart)
    task = glue.load_glue_task("mnli", download=True)
    assert task.test_texts["AX"] == [("E.", "F."), ("G.", "H.")]
    # Once it is there, no permission is needed.
    reordered = glue.load_glue_task(
        "mnli", label_names=("contradiction", "entailment", "neutral")
    )
    assert reordered.dev[1] == [2, 0, 1] * 10
    (info,) = (tmp_path / "prepared" / "glue" / "mnli").rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"cannot be read .*TFRECORD.*\); set fine"):
        glue.load_glue_task("mnli")
