"""From files to samples, for every task: what a model is told in training is what it is told in sampling."""

import csv
import json
import tarfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

import ldmkit
from ldmkit.data import Bicubic, Strokes
from ldmkit.data.augment import CenterCrop, Chain, Resize
from ldmkit.data.boxes import BoxFilter, coco_boxes, openimages_boxes
from ldmkit.data.captions import caption_table, sidecar_captions
from ldmkit.data.folders import class_folders, image_folder, label_map_folders
from ldmkit.data.rows import Reading, Records
from ldmkit.data.shards import Shards
from ldmkit.data.streams import Stream
from ldmkit.data.web import web_shards
from ldmkit.training.diffusion import Diffusion
from ldmkit.training.loop import train
from ldmkit.training.optim import constant
from ldmkit.training.run import Run

SIZE, WIDTH, COUNT = 16, 8, 4
CAPTIONS = ("a red ant", "a blue bee", "a red bee", "an ant, blue")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", "a", "an", "ant", "bee", "blue", "red")
CLASSES = ("ant", "bee")


def model(source=None, context=None, concat=0):
    """A model of a few thousand weights, with a first stage that halves the sides."""
    stage = {"channels": 2, "base_channels": 32, "channel_mult": [1, 1], "num_res_blocks": 1}
    unet = {"model_channels": 32, "channel_mult": [1], "num_res_blocks": 1, "attention_resolutions": [], "num_heads": 1}
    told = {"context_dim": context} if context else {"concat_channels": concat} if concat else {}
    return ldmkit.LatentDiffusion(
        first_stage=ldmkit.build("first-stage", "kl", **stage),
        backbone=ldmkit.build("backbone", "unet", channels=2, **unet, **told),
        process=ldmkit.build("process", "vp"),
        conditioner=None if source is None else ldmkit.Joint({"condition": source}),
    ).eval()


def pictures(folder, names, size=(SIZE + 4, SIZE)):
    """Pictures of noise, in every format that is common; their paths."""
    paths = []
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (torch.rand(size[1], size[0], 3, generator=torch.Generator().manual_seed(i)) * 255).byte().numpy()
        Image.fromarray(pixels).save(path)
        paths.append(path)
    return paths


@dataclass
class Case:
    """Files as people have them, and what is made of them.

    Args:
        task: by name.
        data: what the files are read as.
        model: to be trained.
        call: what a user gives the pipeline for the first record, and it is told there as in training.
        steps: what happens to a record after it is cut to its size.
        first: the first record, of data that have no places.
    """

    task: str
    data: Any
    model: Any
    call: dict[str, Any]
    steps: tuple[Any, ...] = ()
    first: Any = None


def of_classes(data, first=None):
    source = ldmkit.build("conditioner", "class-label", classes=2, width=WIDTH, names=list(CLASSES))
    call = {"label": "ant", "height": SIZE, "width": SIZE}
    return Case("class-conditional", data, model(source, context=WIDTH), call, first=first)


def folder_of_images(out):
    pictures(out, ["a.png", "b/c.JPG", "b/d.webp", "e.bmp"])
    return Case("unconditional", image_folder(out), model(), {"height": SIZE, "width": SIZE})


def folder_per_class(out):
    pictures(out, [f"{name}/{i}.png" for i in range(2) for name in CLASSES])
    data = class_folders(out)
    assert data.names == CLASSES
    return of_classes(data)


def dictionaries(out):
    rows = [{"image": Image.open(path), "kind": i % 2} for i, path in enumerate(pictures(out, ["0.png", "1.png"]))]
    return of_classes(Records(rows, columns={"target": "image", "label": "kind"}))


def stream(out):
    rows = [{"image": path, "kind": i % 2} for i, path in enumerate(pictures(out, ["0.png", "1.png", "2.jpg"]))]
    read = Reading({"target": "image", "label": "kind"})
    return of_classes(Stream(lambda epoch, lane: (dict(row) for row in rows), read=read), read(rows[0]))


def tar(out):
    """A shard of four pictures with their classes."""
    paths = pictures(out, [f"{i}.png" for i in range(COUNT)])
    with tarfile.open(out / "0.tar", "w") as archive:
        for i, path in enumerate(paths):
            path.with_suffix(".cls").write_text(str(i % 2))
            for member in (path, path.with_suffix(".cls")):
                archive.add(member, member.name)
    return out / "0.tar"


def shards(out):
    return of_classes(Records(Shards([tar(out)]), columns={"target": "png", "label": "cls"}))


def web(out):
    pytest.importorskip("webdataset", reason="webdataset is not installed: pip install 'ldmkit[webdataset]'")
    data = web_shards([tar(out)], Reading({"target": "png", "label": "cls"}))
    return of_classes(data, data.read(next(iter(data.open(0, 0)))))


def written(out, suffix):
    """Pictures, and their captions in one of the three forms."""
    paths = pictures(out, [f"{i}.jpg" for i in range(COUNT)])
    if suffix == ".txt":
        for path, caption in zip(paths, CAPTIONS, strict=True):
            path.with_suffix(".txt").write_text(caption + "\n")
        return sidecar_captions(out)
    rows = [{"file_name": path.name, "text": caption} for path, caption in zip(paths, CAPTIONS, strict=True)]
    with (out / f"metadata{suffix}").open("w", newline="") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(file, ["file_name", "text"])
            table.writeheader()
            table.writerows(rows)
    return caption_table(out / f"metadata{suffix}")


def captions(out, suffix):
    out.mkdir()
    pytest.importorskip("ldmkit_transformers", reason="ldmkit-transformers is not installed")
    data = written(out / "pictures", suffix)
    (out / "words.txt").write_text("\n".join(WORDS) + "\n")
    told = {"depth": 1, "heads": 1, "head_width": 8, "length": 8, "tokenizer": str(out / "words.txt")}
    source = ldmkit.build("conditioner", "bert-text", width=WIDTH, **told)
    call = {"prompt": CAPTIONS[0], "height": SIZE, "width": SIZE}
    return Case("text-to-image", data, model(source, context=WIDTH), call)


def coco(out):
    paths = pictures(out / "train", [f"{i}.jpg" for i in range(COUNT)])
    wide, high = SIZE + 4, SIZE
    boxes = [[2, 0, 8, 8], [10, 8, 8, 8]]  # x, y, width, height; the crop takes 2 pixels off either side
    content = {
        "images": [{"id": i, "file_name": path.name, "width": wide, "height": high} for i, path in enumerate(paths)],
        "categories": [{"id": 3, "name": "ant"}, {"id": 7, "name": "bee"}],
        "annotations": [
            {"id": 2 * i + j, "image_id": i, "category_id": (3, 7)[j], "bbox": box, "iscrowd": 0}
            for i in range(COUNT)
            for j, box in enumerate(boxes)
        ],
    }
    (out / "instances.json").write_text(json.dumps(content))
    data = coco_boxes(out / "instances.json", out / "train", BoxFilter(most=2))
    call = {"boxes": [("ant", 0, 0, 0.5, 0.5), ("bee", 0.5, 0.5, 1, 1)], "height": SIZE, "width": SIZE}
    return Case("layout-to-image", data, of_layouts(data.names), call)


def openimages(out):
    paths = pictures(out / "train", [f"{i}.jpg" for i in range(2)], size=(SIZE, SIZE))
    head = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf,IsDepiction,IsInside"
    lines = [f"{path.stem},/m/{j},{j / 2},{(j + 1) / 2},0,0.5,0,0,0,0" for path in paths for j in range(2)]
    (out / "boxes.csv").write_text("\n".join([head, *lines]) + "\n")
    (out / "classes.csv").write_text("/m/0,ant\n/m/1,bee\n")
    data = openimages_boxes(out / "boxes.csv", out / "classes.csv", out / "train")
    call = {"boxes": [("ant", 0, 0, 0.5, 0.5), ("bee", 0.5, 0, 1, 0.5)], "height": SIZE, "width": SIZE}
    return Case("layout-to-image", data, of_layouts(data.names), call)


def of_layouts(names):
    told = {"width": WIDTH, "depth": 1, "tokens": 64, "max_objects": 2, "heads": 1, "head_width": 8}
    return model(ldmkit.build("conditioner", "layout", classes=2, names=list(names), **told), context=WIDTH)


def label_maps(out):
    paths = pictures(out / "images", [f"{i}.jpg" for i in range(COUNT)], size=(SIZE, SIZE))
    (out / "maps").mkdir()
    for i, path in enumerate(paths):
        labels = Image.new("P", (SIZE, SIZE))
        labels.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
        labels.putdata([(x + i) % 3 for x in range(SIZE * SIZE)])
        labels.save(out / "maps" / f"{path.stem}.png")
    data = label_map_folders(out / "images", out / "maps", classes=3)
    source = ldmkit.build("conditioner", "semantic-map", classes=3, channels=2, stages=1)
    return Case("semantic-synthesis", data, model(source, concat=2), {"segmentation": out / "maps" / "0.png"})


def shrunk(record, seed):
    return {**record, "low_res": Bicubic(factor=2)(record["target"], seed)}


def small_ones(out):
    paths = pictures(out, [f"{i}.png" for i in range(COUNT)], size=(SIZE, SIZE))
    source = ldmkit.build("conditioner", "low-res")
    small = Bicubic(factor=2)(image_folder(out)[0]["target"], 0)
    assert paths[0].name == "0.png"
    return Case("super-resolution", image_folder(out), model(source, concat=3), {"image": small}, (shrunk,))


def hidden(record, seed):
    mask = Strokes()(tuple(record["target"].shape[-2:]), 5)
    return {**record, "image": record["target"], "mask_image": mask}


def masked(out):
    paths = pictures(out, [f"{i}.png" for i in range(COUNT)], size=(SIZE, SIZE))
    source = ldmkit.build("conditioner", "masked-image", channels=2)
    mask = Image.fromarray((Strokes()((SIZE, SIZE), 5)[0] * 255).byte().numpy())
    call = {"image": paths[0], "mask_image": mask}
    return Case("inpainting", image_folder(out), model(source, concat=3), call, (hidden,))


CASES = {
    "folder": folder_of_images,
    "classes": folder_per_class,
    "jsonl": partial(captions, suffix=".jsonl"),
    "csv": partial(captions, suffix=".csv"),
    "sidecar": partial(captions, suffix=".txt"),
    "coco": coco,
    "openimages": openimages,
    "label maps": label_maps,
    "super-resolution": small_ones,
    "inpainting": masked,
    "dictionaries": dictionaries,
    "stream": stream,
    "shards": shards,
    "webdataset": web,
}


def told(pipe, **call):
    """What the model's conditioner is given when a user samples, and the images."""
    given = []
    source = pipe.model.conditioner and pipe.model.conditioner.sources["condition"]
    handle = source and source.register_forward_pre_hook(lambda module, inputs: given.append(dict(inputs[0])))
    images = pipe(**call, num_inference_steps=2, seed=0, progress=False, output_type="pt").images
    if handle:
        handle.remove()
    return (given[0] if given else {}), images


@pytest.mark.parametrize("name", CASES)
def test_files_train_a_model_that_is_told_the_same_when_it_samples(name, tmp_path):
    case = CASES[name](tmp_path / "data")
    augment = Chain((Resize(SIZE), CenterCrop(SIZE), *case.steps))
    run = Run(tmp_path / "run", steps=2, batch=2, rate=constant(1e-3), progress=False)
    trainee = Diffusion(case.model, case.task, samples={**case.call, "num_inference_steps": 1})
    path = train(trainee, case.data, run, augment=augment)

    batch = trainee.prepare([augment(case.first or case.data[0], 0)], (0,))
    assert batch.pop("image").shape == (1, 3, SIZE, SIZE)
    pipe = ldmkit.pipeline(case.task, path)
    seen, images = told(pipe, **case.call)
    assert images.shape == (1, 3, SIZE, SIZE)
    assert set(pipe.task.fills) <= batch.keys() <= seen.keys()
    for key, value in batch.items():
        assert_same(seen[key], value, key)


def assert_same(seen, trained, key):
    if isinstance(trained, torch.Tensor):
        torch.testing.assert_close(seen, trained, rtol=0, atol=0, msg=key)
    else:
        assert seen == trained, key


def broken_picture(out):
    paths = pictures(out, [f"{i}.jpg" for i in range(COUNT)], size=(SIZE, SIZE))
    paths[2].write_bytes(paths[2].read_bytes()[:-40])
    return image_folder(out)


def missing_picture(out):
    pictures(out, ["0.jpg"])
    (out / "metadata.jsonl").write_text('{"file_name": "gone.jpg", "text": "a bee"}\n')
    return caption_table(out / "metadata.jsonl")


def box_outside(out):
    pictures(out, ["0.jpg"])
    note = {"id": 5, "image_id": 1, "category_id": 3, "bbox": [2, 2, 40, 4], "iscrowd": 0}
    image = {"id": 1, "file_name": "0.jpg", "width": SIZE + 4, "height": SIZE}
    content = {"images": [image], "categories": [{"id": 3, "name": "ant"}], "annotations": [note]}
    (out / "instances.json").write_text(json.dumps(content))
    return coco_boxes(out / "instances.json", out)


def smaller_map(out):
    pictures(out / "images", ["0.jpg"], size=(SIZE, SIZE))
    (out / "maps").mkdir()
    Image.new("L", (SIZE, SIZE - 4)).save(out / "maps" / "0.png")
    return label_map_folders(out / "images", out / "maps")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            broken_picture,
            r"sample 2 of Records cannot be read: .*2\.jpg' cannot be decoded, .* Mend it, or leave it out",
        ),
        (
            missing_picture,
            r"metadata\.jsonl', line 1 names 'gone\.jpg', .*'.*gone\.jpg': put it there, or take the line",
        ),
        (box_outside, r"instances\.json', annotation 5 is no box on its picture: .*; correct it or take it out"),
        (smaller_map, r"target '.*0\.jpg' 16 x 16, segmentation '.*0\.png' 12 x 16; bring them to one size"),
    ],
)
def test_what_is_wrong_with_the_data_is_said_once_with_the_file_and_what_to_do(make, says, tmp_path):
    run = Run(tmp_path / "run", steps=1, batch=4, rate=constant(1e-3), progress=False)
    with pytest.raises((ValueError, RuntimeError), match=says):
        train(Diffusion(model(), "unconditional"), make(tmp_path / "data"), run)
