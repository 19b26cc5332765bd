import csv
import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from ldmkit.data.boxes import BoxFilter, coco_boxes, openimages_boxes
from ldmkit.data.captions import caption_table, sidecar_captions
from ldmkit.data.folders import class_folders, image_folder, label_map_folders
from ldmkit.data.rows import Records
from ldmkit.data.shards import Shards
from ldmkit.tasks.layout_to_image import LayoutToImage
from ldmkit.training.data import Feed

HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def picture(path, value=128, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def test_a_folder_is_read_in_the_order_of_its_names_whatever_the_order_of_writing(tmp_path):
    for name in ("b/2.PNG", "b/1.png", "a.jpeg", ".hidden.png"):
        picture(tmp_path / name)
    data = image_folder(tmp_path)
    assert [row["target"].relative_to(tmp_path).as_posix() for row in data.rows] == ["a.jpeg", "b/1.png", "b/2.PNG"]
    assert data[0]["target"].shape == (3, 6, 8)
    assert len(image_folder(tmp_path, channels=1)[2]["target"]) == 1


def test_no_file_of_a_folder_is_passed_over(tmp_path):
    with pytest.raises(ValueError, match=r"no pictures.*; 0 files were found"):
        image_folder(tmp_path)
    picture(tmp_path / "a.png")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"has 2 files, of which 1 are no pictures.*notes\.md"):
        image_folder(tmp_path)
    assert len(image_folder(tmp_path, ignore=("*.md",))) == 1
    with pytest.raises(ValueError, match="no folder"):
        image_folder(tmp_path / "none")


def test_a_linked_folder_is_read_and_a_hidden_one_is_not(tmp_path):
    picture(tmp_path / "elsewhere/1.png")
    picture(tmp_path / "here/.trash/2.png")
    (tmp_path / "here/linked").symlink_to(tmp_path / "elsewhere")
    assert [row["target"].name for row in image_folder(tmp_path / "here").rows] == ["1.png"]


def test_a_damaged_picture_is_named(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    with pytest.raises(ValueError, match=r"target of row 0: '.*bad\.png'"):
        image_folder(tmp_path)[0]


def test_classes_are_numbered_by_name_or_as_told(tmp_path):
    for name in ("cat/1.png", "ant/1.png", "ant/2.png"):
        picture(tmp_path / name)
    data = class_folders(tmp_path)
    assert data.names == ("ant", "cat")
    assert [record["label"] for record in (data[i] for i in range(3))] == [0, 0, 1]
    assert [row["label"] for row in class_folders(tmp_path, names=("cat", "ant")).rows] == [0, 1, 1]
    with pytest.raises(ValueError, match="dog"):
        class_folders(tmp_path, names=("ant", "cat", "dog"))
    picture(tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"1 pictures lie beside: '.*0\.png'"):
        class_folders(tmp_path)


def test_an_empty_class_is_refused(tmp_path):
    picture(tmp_path / "ant/1.png")
    (tmp_path / "bee").mkdir()
    with pytest.raises(ValueError, match="bee' has no pictures"):
        class_folders(tmp_path)


def test_maps_keep_the_indices_of_their_palette_and_void_is_relabelled(tmp_path):
    picture(tmp_path / "images/x/1.jpg", size=(2, 2))
    (tmp_path / "maps/x").mkdir(parents=True)
    indexed = Image.new("P", (2, 2))
    indexed.putpalette([9, 9, 9, 200, 0, 0, 0, 0, 7] + [1] * 759)
    indexed.putdata([0, 1, 2, 255])
    indexed.save(tmp_path / "maps/x/1.png")
    folders = tmp_path / "images", tmp_path / "maps"
    assert label_map_folders(*folders)[0]["segmentation"].tolist() == [[0, 1], [2, 255]]
    assert label_map_folders(*folders, classes=4, relabel={255: 3})[0]["segmentation"].tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=r"segmentation of row 0 '.*1\.png'.*255"):
        label_map_folders(*folders, classes=4)[0]
    with pytest.raises(ValueError, match=r"segmentation of row 0"):
        label_map_folders(*folders, classes=3, relabel={255: 3})[0]


def test_pictures_and_maps_are_partners_of_one_size(tmp_path):
    picture(tmp_path / "images/1.jpg")
    picture(tmp_path / "images/2.jpg")
    Image.new("L", (8, 5)).save(picture(tmp_path / "maps/1.png"))
    with pytest.raises(ValueError, match="1 have no partner: '2' has no label map"):
        label_map_folders(tmp_path / "images", tmp_path / "maps")
    (tmp_path / "images/2.jpg").unlink()
    with pytest.raises(ValueError, match=r"target '.*1\.jpg' 6 x 8, segmentation '.*1\.png' 5 x 8"):
        label_map_folders(tmp_path / "images", tmp_path / "maps")[0]


def test_captions_stand_beside_or_in_a_table(tmp_path):
    a, b = picture(tmp_path / "a.png"), picture(tmp_path / "s/b.png")
    said = {a: "a dog, asleep", b: "ein Übermut: \u2028 zwei"}
    lines = [{"file_name": str(path.relative_to(tmp_path)), "text": text} for path, text in said.items()]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", "utf-8")
    with (tmp_path / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["text", "file_name"])
        writer.writeheader()
        writer.writerows(lines)
    for table in ("t.jsonl", "t.csv"):
        assert {row["target"]: row["prompt"] for row in caption_table(tmp_path / table).rows} == said
        (tmp_path / table).unlink()
    for path, text in said.items():
        path.with_suffix(".txt").write_text(text + "\n", "utf-8")
    data = sidecar_captions(tmp_path)
    assert {row["target"]: row["prompt"] for row in data.rows} == said
    assert sorted(data[0]) == ["prompt", "target"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"file_name": "a.png", "text": "x"}\n{oh', r"t\.jsonl', line 2 is not JSON"),
        ("t.jsonl", '{"file_name": "a.png"}', r"line 1 has no text in column \['text'\]"),
        ("t.jsonl", '{"file_name": "gone.png", "text": "x"}', r"line 1 names 'gone\.png'"),
        ("t.csv", "file_name,text\na.png, \n", r"t\.csv', line 2: the caption is empty"),
        ("t.csv", "file_name,text\na.png,a dog, asleep\n", "line 2 has more fields"),
        ("t.csv", "file_name,text\n", "has no lines"),
        ("t.xml", "", r"read from \.jsonl, \.csv, \.tsv"),
    ],
)
def test_a_bad_line_is_named(tmp_path, name, content, message):
    picture(tmp_path / "a.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        caption_table(tmp_path / name)


def test_captions_and_pictures_are_partners(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"1 of 1 pictures.*'a\.txt' beside it"):
        sidecar_captions(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"a\.txt' is not UTF-8"):
        sidecar_captions(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(ValueError, match=r"have no picture: '.*b\.txt'"):
        sidecar_captions(tmp_path)


def coco(tmp_path, boxes, **more):
    picture(tmp_path / "a.jpg", size=(20, 10))
    notes = [
        {"id": i, "image_id": 7, "category_id": number, "bbox": box, "iscrowd": crowd}
        for i, (number, box, crowd) in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 20, "height": 10}],
        "categories": [{"id": 90, "name": "brush"}, {"id": 3, "name": "car"}],
        "annotations": notes,
    } | more
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path / "instances.json"


def test_coco_pixels_become_fractions_and_ids_numbers(tmp_path):
    path = coco(tmp_path, [(90, [2, 1, 10, 5], 0), (3, [0, 0, 20.1, 10], 1), (3, [5, 5, 0, 3], 0)])
    data = coco_boxes(path, tmp_path)
    assert data.names == ("car", "brush")
    assert data[0]["boxes"] == [(1, 0.1, 0.1, 0.6, 0.6, ()), (0, 0.0, 0.0, 1.0, 1.0, ("group",))]
    assert data.left_out == {"boxes of an area up to 1e-05": 1}
    only = coco_boxes(path, tmp_path, BoxFilter(least=1), categories=("brush",))
    assert [box[0] for box in only[0]["boxes"]] == [0]
    assert only.left_out["boxes of other categories"] == 2
    made = LayoutToImage(classes=2).prepare({"boxes": [data[0]["boxes"]]})["boxes"][0]
    assert [(box.label, box.flags) for box in made] == [(1, ()), (0, ("group",))]


def test_a_coco_file_that_does_not_hold_together_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"instances\.json', annotation 0 is no box on its picture"):
        coco_boxes(coco(tmp_path, [(3, [2, 1, 30, 5], 0)]), tmp_path)
    with pytest.raises(ValueError, match=r"annotation 0 has no box \(x, y, width, height\)"):
        coco_boxes(coco(tmp_path, [(3, [2, 1, 30], 0)]), tmp_path)
    with pytest.raises(ValueError, match=r"annotation 0 is of image 7 and category 4"):
        coco_boxes(coco(tmp_path, [(4, [2, 1, 3, 5], 0)]), tmp_path)
    with pytest.raises(ValueError, match=r"nothing to train on; left out: 1 pictures without 2 to 30 boxes"):
        coco_boxes(coco(tmp_path, [(3, [2, 1, 3, 5], 0)]), tmp_path)
    with pytest.raises(ValueError, match=r"annotations\[0\] must have"):
        coco_boxes(coco(tmp_path, [], annotations=[{"id": 1}]), tmp_path)
    with pytest.raises(ValueError, match="lists images, annotations, categories"):
        coco_boxes(coco(tmp_path, [], annotations=None), tmp_path)
    path = coco(tmp_path, [])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of the 1 pictures that .* 'a\.jpg'"):
        coco_boxes(path, tmp_path)


def openimages(tmp_path, *lines):
    picture(tmp_path / "images/0a.jpg")
    (tmp_path / "classes.csv").write_text("/m/1,Tree\n/m/2,Person\n")
    (tmp_path / "boxes.csv").write_text("\n".join((HEAD, *lines)) + "\n")
    return tmp_path / "boxes.csv", tmp_path / "classes.csv", tmp_path / "images"


def test_openimages_lines_become_boxes_with_flags(tmp_path):
    files = openimages(
        tmp_path,
        "0a,xclick,/m/2,1,0.25,0.5,0,0.75,1,0,1,0,0",
        "0a,xclick,/m/1,1,0.1,0.9,0.2,0.3,-1,0,0,1,1",
        "0a,xclick,/m/9,1,0.1,0.9,0.2,0.3,0,0,0,0,0",
        "0b,xclick,/m/1,1,0.1,0.9,0.2,0.3,0,0,0,0,0",
    )
    data = openimages_boxes(*files)
    assert data.names == ("Tree", "Person")
    assert data[0]["boxes"] == [
        (1, 0.25, 0.0, 0.5, 0.75, ("group", "occluded")),
        (0, 0.1, 0.2, 0.9, 0.3, ("depiction", "inside")),
    ]
    assert data.left_out == {"boxes of other classes": 1, "boxes of pictures that are not in the folder": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0a,xclick,/m/2,1,0.25,0.5,0", r"boxes\.csv', line 2 has 7 fields, the head line 13"),
        ("0a,xclick,/m/2,1,oh,0.5,0,0.75,1,0,1,0,0", r"line 2: could not convert"),
        ("0a,xclick,/m/2,1,0.5,0.25,0,0.75,1,0,1,0,0", r"line 2 is no box"),
    ],
)
def test_a_bad_line_of_openimages_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        openimages_boxes(*openimages(tmp_path, line))


def test_openimages_columns_are_asked_for(tmp_path):
    files = openimages(tmp_path)
    files[0].write_text("ImageID,LabelName\n")
    with pytest.raises(ValueError, match=r"has no columns \['XMin'"):
        openimages_boxes(*files)


def test_anything_that_gives_dictionaries_is_renamed_and_read(tmp_path):
    rows = [{"image": Image.new("L", (4, 4), 255), "text": "white", "rest": object()}]
    record = Records(rows, columns={"target": "image", "prompt": "text"})[0]
    assert sorted(record) == ["prompt", "target"]
    assert torch.equal(record["target"], torch.ones(3, 4, 4))
    with pytest.raises(ValueError, match=r"row 0 has no \['caption'\]"):
        Records(rows, columns={"prompt": "caption"})[0]
    with pytest.raises(TypeError, match=r"make list\(...\)"):
        Records(iter(rows))
    with pytest.raises(IndexError):
        Records(rows)[1]


def shard(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def shards(tmp_path, sizes=(3, 5)):
    numbers = iter(range(sum(sizes)))
    return [
        shard(
            tmp_path / f"{s}.tar",
            {
                f"d/{n}.{suffix}": content
                for n in (next(numbers) for _ in range(size))
                for suffix, content in (("png", png(n)), ("txt", f"no. {n}\n".encode()), ("cls", b"%d" % n))
            },
        )
        for s, size in enumerate(sizes)
    ]


def test_a_shard_gives_its_samples_by_place(tmp_path):
    rows = Shards(shards(tmp_path))
    assert len(rows) == 8
    row = rows[4]
    assert (row["__key__"], row["txt"], row["cls"]) == ("d/4", "no. 4", 4)
    record = Records(rows, columns={"target": "png", "prompt": "txt", "label": "cls"})[7]
    assert record["label"] == 7
    assert torch.equal(record["target"], torch.full((3, 4, 4), 7 / 255))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (4, 0), (2, 2)])
def test_every_sample_of_the_shards_is_seen_once_an_epoch_whatever_the_world(tmp_path, world, workers):
    data = Records(Shards(shards(tmp_path)), columns={"target": "png", "label": "cls"})
    seen = [
        [[record["label"] for portion in step for record in portion.records] for step in feed.steps(0, 4)]
        for feed in (Feed(data, None, seed=3, batch=4, rank=r, world=world, workers=workers) for r in range(world))
    ]
    steps = [[label for rank in seen for label in rank[step]] for step in range(4)]
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) == list(range(8))
    alone = Feed(data, None, seed=3, batch=4)
    assert steps == [[record["label"] for record in step[0].records] for step in alone.steps(0, 4)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"1.png": b"", "2.png": b"", "1.txt": b""}, "two samples '1'"),
        ({}, "has no samples"),
    ],
)
def test_a_shard_that_is_out_of_order_is_named(tmp_path, members, message):
    with pytest.raises(ValueError, match=rf"0\.tar' .*{message}"):
        Shards([shard(tmp_path / "0.tar", members)])


def test_a_damaged_shard_is_named(tmp_path):
    path = shards(tmp_path, (2,))[0]
    cut = tmp_path / "cut.tar"
    cut.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"cut\.tar' cannot be read as a tar file.*end of data"):
        Shards([cut])
    (tmp_path / "no.tar").write_bytes(b"no tar file" * 100)
    with pytest.raises(ValueError, match=r"no\.tar' cannot be read as a tar file"):
        Shards([tmp_path / "no.tar"])
    bad = Shards([shard(tmp_path / "bad.tar", {"1.png": b"nothing", "1.cls": b"1"})])
    with pytest.raises(ValueError, match=r"bad\.tar', member '1\.png' cannot be read"):
        bad[0]
