"""Streams and shards: every reader gets its own, whatever their number, and nothing in a shard is run."""

import io
import os
import pickle
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import IterableDataset, get_worker_info

from ldmkit.data.rows import Reading
from ldmkit.data.streams import SplitStream, Stream
from ldmkit.training.data import Feed
from ldmkit.training.loop import train
from ldmkit.training.order import sample_seeds

webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed: pip install 'ldmkit[webdataset]'")

from distributed.reading import EVEN, KINDS, UNEVEN, indexed, labels, streamed, vectors, write  # noqa: E402
from distributed.small import Small, run  # noqa: E402

from ldmkit.data.web import web_shards  # noqa: E402

TESTS = Path(__file__).parent


class Numbers:
    """The numbers below an end, a lane of them at a time; the first epoch goes up, the next goes down, and so on."""

    def __init__(self, end, lanes=1):
        self.end = end
        self.lanes = lanes
        self.opened = []

    def __call__(self, epoch, lane):
        self.opened.append((epoch, lane))
        own = range(self.end)[lane :: self.lanes]
        return iter(own[:: -1 if epoch % 2 else 1])


def labelled(number):
    return {"label": number}


def flat(steps):
    return [label for step in steps for label in step]


def joined(data, world, workers, steps=5):
    """What all processes see of each step, in the order of the batch."""
    seen = [labels(data, rank, world, workers, steps) for rank in range(world)]
    return [[label for own in seen for label in own[step]] for step in range(steps)]


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (1, 2), (4, 2), (8, 0)])
def test_any_number_of_readers_sees_what_one_sees(lanes, world, workers):
    stream = Stream(Numbers(24, lanes), lanes, labelled)
    alone = joined(stream, 1, 0)
    assert joined(stream, world, workers) == alone
    assert sorted(flat(alone[:3])) == list(range(24))


def test_a_stream_of_one_lane_comes_in_its_order_and_begins_again():
    assert labels(Stream(Numbers(10), read=labelled), steps=3) == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 9, 8, 7, 6, 5, 4],
        [3, 2, 1, 0, 0, 1, 2, 3],
    ]


def test_a_reader_opens_its_own_lanes_alone():
    numbers = Numbers(16, 4)
    labels(Stream(numbers, 4, labelled), rank=1, world=2, steps=2)
    assert numbers.opened == [(0, 2), (0, 3)]


@pytest.mark.parametrize("lanes", [1, 4])
def test_a_stream_goes_on_where_it_was_and_opens_no_epoch_that_is_over(lanes):
    whole = labels(Stream(Numbers(20, lanes), lanes, labelled), steps=14)
    numbers = Numbers(20, lanes)
    assert labels(Stream(numbers, lanes, labelled), start=11, steps=14) == whole[11:]
    assert {epoch for epoch, _ in numbers.opened} == {0, 4, 5}  # the first tells how long an epoch is


def test_what_is_passed_over_is_not_read():
    read = []
    stream = Stream(Numbers(24), read=lambda number: (read.append(number), {"label": number})[1])
    assert labels(stream, rank=1, world=2, start=1, steps=2) == [read] == [[12, 13, 14, 15]]


def test_samples_of_a_stream_have_the_numbers_and_seeds_of_the_run():
    def drawn(number):
        return {"label": number, "drawn": float(torch.rand(()))}

    def augment(record, seed):
        return {**record, "seed": seed}

    def portions(world, workers, parts):
        feeds = [Feed(Stream(Numbers(9), read=drawn), augment, 5, 12, r, world, parts, workers) for r in range(world)]
        return [portion for feed in feeds for portion in next(feed.steps(2, 3))]

    for world, workers, parts in ((1, 0, 1), (2, 2, 3), (3, 1, 2)):
        found = portions(world, workers, parts)
        assert len(found) == world * parts
        records = [record for portion in found for record in portion.records]
        seeds = [seed for portion in found for seed in portion.seeds]
        assert seeds == list(sample_seeds(5, 24, 12)) == [record["seed"] for record in records]
        assert [place for portion in found for place in portion.places] == list(range(24, 36))
        assert records == [record for portion in portions(1, 0, 1) for record in portion.records]


def test_the_first_samples_are_those_of_the_run():
    feed = Feed(Stream(Numbers(24, 4), 4, labelled), None, 0, 8)
    first = [record["label"] for record in feed.first(11)]
    assert first == flat(joined(feed.data, 1, 0, 2))[:11]
    assert feed.samples is None


class Own(IterableDataset):
    """Splits itself over the workers of a process, as the documentation of torch shows it."""

    def __iter__(self):
        worker = get_worker_info()
        yield from range(24) if worker is None else range(24)[worker.id :: worker.num_workers]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_splits_itself_is_not_split_again(workers):
    seen = labels(SplitStream(lambda epoch: Own(), labelled), workers=workers, steps=6)
    assert sorted(flat(seen[:3])) == sorted(flat(seen[3:])) == list(range(24))


@pytest.mark.parametrize(
    ("data", "options", "error", "says"),
    [
        (Stream(Numbers(9), 3), {}, ValueError, "batch of 8 cannot be shared equally by 3 lanes"),
        (SplitStream(Numbers(9)), {"workers": 3}, ValueError, "batch of 8 cannot be shared equally by 3 readers"),
        (iter([{}]), {}, TypeError, r"list_iterator has no length and index: Stream\(lambda epoch, lane"),
        (Own(), {}, TypeError, "Own has no length and index"),
    ],
)
def test_what_cannot_be_fed_is_refused_before_it_is_opened(data, options, error, says):
    with pytest.raises(error, match=says):
        Feed(data, None, 0, 8, **options)
    with pytest.raises(ValueError, match="at least 1 lane"):
        Stream(Numbers(9), 0)


def test_a_stream_that_breaks_says_where():
    spent = iter(range(12))
    once = Stream(lambda epoch, lane: spent, read=labelled)
    with pytest.raises(RuntimeError, match=r"Stream broke off in step 1: .* lane 0 of 1 has no records in epoch 1"):
        labels(once, steps=2)
    with pytest.raises(RuntimeError, match="sample 0 of Stream cannot be read: TypeError: a record is a mapping, got"):
        labels(Stream(Numbers(9)))


def test_a_run_on_a_stream_goes_on_to_the_same_bits(tmp_path):
    whole = load_file(train(Small(dropout=0.3), Stream(vectors), run(tmp_path / "whole")))
    train(Small(dropout=0.3), Stream(vectors), run(tmp_path / "cut", steps=4))
    again = load_file(train(Small(dropout=0.3), Stream(vectors), run(tmp_path / "cut")))
    assert all(torch.equal(again[name], value) for name, value in whole.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Shards of equal and of unequal sizes."""
    out = tmp_path_factory.mktemp("shards")
    write(out / "even", EVEN)
    write(out / "uneven", UNEVEN)
    return out


def shards(folder, part):
    return sorted(map(str, (folder / part).glob("*.tar")))


@pytest.fixture(scope="module")
def seen(folder):
    """What each of two processes with two workers saw, by kind and shards."""
    import json

    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, str(TESTS / "distributed" / "reading.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]
    return {name: [ranks[0][name], ranks[1][name]] for name in ranks[0]}


@pytest.mark.parametrize("part", ["even", "uneven"])
@pytest.mark.parametrize("make", [indexed, streamed])
def test_two_processes_with_workers_see_what_one_sees(folder, seen, make, part):
    first, second = seen[f"{make.__name__} {part}"]
    together = [own + other for own, other in zip(first, second, strict=True)]
    assert together == labels(make(shards(folder, part)))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_share_an_epoch_without_gaps_or_doubles(seen, kind):
    first, second = (flat(steps[:3]) for steps in seen[f"{kind} even"])
    assert sorted(first + second) == list(range(sum(EVEN)))
    assert not set(first) & set(second)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_with_unequal_parts_take_equally_many_and_see_everything(seen, kind):
    first, second = seen[f"{kind} uneven"]
    assert {len(step) for step in first + second} == {4}
    assert set(flat(first + second)) == set(range(sum(UNEVEN)))


def test_two_processes_train_on_a_stream_what_one_trains(folder, seen, tmp_path):
    alone = load_file(train(Small(), Stream(vectors), run(tmp_path)))
    both = load_file(folder / "trained" / "model.safetensors")
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value, rtol=1e-6, atol=1e-6)


def test_shards_come_in_another_order_in_every_epoch(folder):
    stream = web_shards(shards(folder, "even"), Reading({"label": "cls"}), buffer=5, seed=1)
    epochs = [[stream.read(item)["label"] for item in stream.open(epoch, 0)] for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24))
    assert sorted(flat(labels(streamed(shards(folder, "even")), steps=3))) == list(range(24))
    plain = web_shards(f"{folder}/even/{{0..7}}.tar", Reading({"label": "cls"}))
    order = [plain.read(item)["label"] // 3 for item in plain.open(0, 0)]
    assert order[::3] == order[1::3] == order[2::3] != sorted(order[::3])


def shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return str(path)


def picture(form, value=128):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(buffer, form)
    return buffer.getvalue()


def read(path, columns):
    stream = web_shards([path], Reading(columns))
    return [stream.read(item) for item in stream.open(0, 0)]


def test_members_become_the_words_of_the_tasks(tmp_path):
    note = b'{"caption": "a dog", "objects": [[3, 0.1, 0.2, 0.5, 0.6]]}'
    path = shard(
        tmp_path / "0.tar",
        {"a/1.jpg": picture("JPEG"), "a/1.json": note, "a/1.mp4": b"x", "a/2.png": picture("PNG"), "a/2.json": note},
    )
    records = read(path, {"target": "jpg;png", "prompt": "json:caption", "boxes": "json:objects"})
    assert [sorted(record) for record in records] == [["boxes", "prompt", "target"]] * 2
    assert [tuple(record["target"].shape) for record in records] == [(3, 8, 8)] * 2
    assert records[0]["prompt"] == "a dog"
    assert records[1]["boxes"] == [[3, 0.1, 0.2, 0.5, 0.6]]


class Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pkl", "pickle", "pyd", "pyc", "pth", "pt", "npy", "ten", "mask.pkl"])
def test_nothing_in_a_shard_is_run(tmp_path, suffix):
    mark = tmp_path / "run"
    path = shard(tmp_path / "0.tar", {"1.png": picture("PNG"), f"1.{suffix}": pickle.dumps(Hostile(mark))})
    with pytest.raises(ValueError, match=rf"member '{suffix}' for 'boxes' is not decoded: .* could run code"):
        web_shards([path], Reading({"target": "png", "boxes": suffix}))
    assert [sorted(record) for record in read(path, {"target": "png"})] == [["target"]]
    assert not mark.exists()


@pytest.mark.parametrize(
    ("members", "columns", "says"),
    [
        (
            {"1.jpg": picture("JPEG")[:-9]},
            {"target": "jpg"},
            r"'.*0\.tar', member '1\.jpg' cannot be read: (?i:.*trunc)",
        ),
        ({"1.jpg": b"GIF8"}, {"target": "jpg"}, r"member '1\.jpg' cannot be read: 4 bytes that are no picture of"),
        ({"1.json": b"{oh"}, {"boxes": "json"}, r"'.*0\.tar', member '1\.json' cannot be read"),
        ({"1.cls": b"x"}, {"label": "cls"}, r"member '1\.cls' cannot be read: invalid literal"),
        ({"1.txt": b"\xff\xfe"}, {"prompt": "txt"}, r"member '1\.txt' cannot be read"),
        ({"1.png": picture("PNG")}, {"prompt": "txt"}, r"'.*0\.tar', sample '1' has no \['txt'\]; it has \['png'\]"),
        ({"1.json": b"{}"}, {"boxes": "json:boxes"}, r"sample '1' has no \['json:boxes'\]"),
        ({}, {"target": "png"}, r"shard '.*0\.tar' has no samples"),
        ({"1.png": b"", "1.PNG": b""}, {"target": "png"}, r"shard '.*0\.tar' cannot be read .* duplicate file name"),
    ],
)
def test_a_bad_member_is_named(tmp_path, members, columns, says):
    with pytest.raises(ValueError, match=says):
        read(shard(tmp_path / "0.tar", members), columns)


def test_a_damaged_shard_is_named(tmp_path):
    whole = Path(shard(tmp_path / "0.tar", {f"{i}.png": random.Random(0).randbytes(9000) for i in range(4)}))
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:14000])
    (tmp_path / "no.tar").write_bytes(b"no tar file" * 100)
    for name, says in (("cut", "unexpected end of data"), ("no", "ReadError"), ("gone", "No such file")):
        stream = web_shards([tmp_path / f"{name}.tar"], Reading({"target": "png"}))
        with pytest.raises(ValueError, match=rf"shard '.*{name}\.tar' cannot be read as a tar file: .*{says}"):
            list(stream.open(0, 0))


@pytest.mark.parametrize(
    ("reading", "lanes", "says"),
    [
        (Reading({"target": "png"}), 3, "2 shards cannot be dealt to 3 lanes"),
        (Reading(), 1, "must say which member"),
    ],
)
def test_a_stream_of_shards_is_checked_before_it_is_opened(reading, lanes, says):
    with pytest.raises(ValueError, match=says):
        web_shards("{0..1}.tar", reading, lanes)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ImportError, match=r"pip install ldmkit\[webdataset\]"):
        web_shards(["0.tar"], Reading({"target": "png"}))


def test_webdataset_alone_would_double_what_two_processes_see(folder, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="explicit nodesplitter"):
        next(iter(webdataset.WebDataset(shards(folder, "even"), shardshuffle=False)))
