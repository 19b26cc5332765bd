"""Laws of evaluation: distances with known answers, sets that give the same images however they are read, reports."""

import json
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ldmkit.data import ShapeScenes
from ldmkit.demo import DIGITS
from ldmkit.errors import OptionError
from ldmkit.evaluation import (
    Features,
    Folder,
    Reconstructions,
    Reference,
    Samples,
    Targets,
    distances,
    evaluate,
    sweep,
    throughput,
)
from ldmkit.evaluation.distances import ClassScore, kernel_distance, precision_recall
from ldmkit.evaluation.pairs import summary
from ldmkit.pipelines import pipeline
from ldmkit.training.metrics import psnr, ssim
from ldmkit.training.perceptual import LPIPS, VGG16


class Numbered:
    """Images that hold nothing but their number, from ``first`` on."""

    def __init__(self, count, first=0):
        self.count, self.first = count, first

    def __len__(self):
        return self.count

    def read(self, places):
        found = torch.zeros(len(places), 3, 2, 2, dtype=torch.uint8)
        for row, place in enumerate(places):
            found[row, 0], found[row, 1] = divmod(place + self.first, 256)
        return found

    def facts(self):
        return {"kind": "numbered", "count": self.count}


class Looked(nn.Module):
    """The features that a table has for a number."""

    def __init__(self, table):
        super().__init__()
        self.register_buffer("table", table)

    def forward(self, x):
        digits = (x[:, :2, 0, 0] * 255).round().long()
        return self.table[digits[:, 0] * 256 + digits[:, 1]]


def normal(count, width):
    """Points whose sample mean is 0 and whose sample covariance is the unit, exactly."""
    x = torch.randn(count, width, dtype=torch.float64)
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (count - 1)).T)


def between(real, made, metrics=None, head=None, **options):
    """Figures of two tables of features, and the report."""
    features = Features("table", Looked(torch.cat([real, made])).eval(), head)
    reference = Reference(Numbered(len(real)), features, metrics, batch=7, **options)
    return evaluate(Numbered(len(made), len(real)), reference, batch=5, progress=False)


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    real, shift = normal(40, 4), torch.tensor([0.5, 0, -1, 2], dtype=torch.float64)
    root = torch.randn(4, 4, dtype=torch.float64)
    root = root @ root.T + torch.eye(4)  # the square root of the covariance of what is made
    found = between(real, normal(60, 4) @ root + shift, ["fd"]).figures
    expected = float(shift.square().sum() + (root - torch.eye(4)).square().sum())
    assert found == {"fd_table": pytest.approx(expected, rel=1e-6)}
    assert between(real, real, ["fd"]).figures["fd_table"] == pytest.approx(0, abs=1e-9)


def test_the_kernel_distance_is_the_unbiased_sum():
    real, made = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64) + 1

    def mean(a, b, whole):
        pairs = [(i, j) for i in range(6) for j in range(6) if whole or i != j]
        return sum(float(a[i] @ b[j] / 3 + 1) ** 3 for i, j in pairs) / len(pairs)

    expected = mean(real, real, False) + mean(made, made, False) - 2 * mean(real, made, True)
    assert kernel_distance(real, made, 2, 6) == pytest.approx((expected, 0), rel=1e-9, abs=1e-9)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average():
    draws = [kernel_distance(torch.randn(20, 2), torch.randn(20, 2), 1, 20)[0] for _ in range(300)]
    assert abs(sum(draws) / 300) < 4 * float(torch.tensor(draws).std()) / 300**0.5


def test_subsets_are_drawn_from_their_seed_and_not_from_the_state_of_torch():
    real, made = torch.randn(30, 2), torch.randn(40, 2)
    first = kernel_distance(real, made, 5, 10)
    torch.manual_seed(7)
    assert kernel_distance(real, made, 5, 10) == first
    assert kernel_distance(real, made, 5, 10, seed=1) != first


@pytest.mark.parametrize("at_once", [2**24, 50])
def test_precision_and_recall_of_known_sets(at_once, monkeypatch):
    monkeypatch.setattr(distances, "AT_ONCE", at_once)
    near, far = torch.randn(20, 3), torch.randn(20, 3) + 1000
    assert precision_recall(near, near) == (1, 1)
    assert precision_recall(near, far) == (0, 0)
    assert precision_recall(torch.cat([near, far]), near) == (1, 0.5)
    assert precision_recall(near, torch.cat([near, far])) == (0.5, 1)
    assert precision_recall(near, near[:1].expand(9, 3)) == (1, 0.05)  # one image made nine times


def test_precision_is_counted_ball_by_ball():
    real, made = torch.randn(60, 3), 2 * torch.randn(50, 3)
    for neighbours in (1, 2, 3, 4):
        radius = [sorted(float((a - b).norm()) for b in real)[neighbours] for a in real]  # itself is the first
        inside = [any((m - a).norm() <= r for a, r in zip(real, radius, strict=True)) for m in made]
        found = precision_recall(real, made, neighbours)
        assert found[0] == pytest.approx(sum(inside) / 50)
        assert found == precision_recall(made, real, neighbours)[::-1]


def test_the_score_of_known_probabilities():
    count, sure = 60, 50 * torch.eye(6)
    each, same = ClassScore(count, 6, 1), ClassScore(count, 6, 1)
    each.update(torch.arange(count), sure.repeat(10, 1))
    same.update(torch.arange(count), sure[:1].expand(count, 6))
    assert each.compute() == pytest.approx((6, 0))
    assert same.compute() == pytest.approx((1, 0))


def test_the_score_is_that_of_torchmetrics():
    from torchmetrics.image.inception import InceptionScore

    logits = 2 * torch.randn(50, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = InceptionScore(feature=nn.Identity(), splits=1)
        theirs.update(logits)
        expected = float(theirs.compute()[0])
    ours = ClassScore(50, 7, 1)
    ours.update(torch.arange(20), logits[:20])
    ours.update(torch.arange(20, 50), logits[20:])
    assert ours.compute()[0] == pytest.approx(expected, rel=1e-5)


def test_images_sorted_by_class_do_no_harm_to_the_score():
    score = ClassScore(1000, 5, 10)
    score.update(torch.arange(1000), 50 * torch.eye(5).repeat_interleave(200, 0))
    mean, deviation = score.compute()
    assert mean == pytest.approx(5, rel=0.03)
    assert 0 < deviation < 0.2


def test_figures_are_named_after_the_network():
    real, made = normal(20, 2), normal(20, 2)
    found = between(real, made, head=lambda x: x, subset_size=10, splits=2).figures
    names = ["fd", "kd", "precision", "recall", "score"]
    assert [name for name in found if "std" not in name] == [f"{name}_table" for name in names]
    assert not {"fid", "kid", "is"} & {part for name in found for part in name.split("_")}


@pytest.mark.parametrize("name", ["fid", "my_fid", "fid50k", "kid_small", "is", "FD", "a b", ""])
def test_no_other_network_may_claim_the_name(name):
    with pytest.raises(ValueError, match="features are named by lower-case letters"):
        Features(name, nn.Flatten().eval())


def test_networks_that_give_no_features_are_refused():
    with pytest.raises(ValueError, match=r"training mode: call its eval\(\) first"):
        Features("a", nn.Flatten())
    one = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"must give \(B, D\) for 2 images, got \(2, 3, 4, 4\)"):
        Features("a", nn.Identity().eval())(one)
    with pytest.raises(ValueError, match="features that are not finite"):
        Features("a", Looked(torch.full((1, 2), math.nan)).eval())(one)


def test_too_few_images_are_told():
    report = between(normal(5, 4), normal(4, 4), ["fd", "kd"])
    assert report.notes[0].startswith("fd_table: 4 images for 4 features, whose covariance is singular")
    assert report.notes[1] == "kd_table: subsets of 4 instead of 1000"
    assert "note: fd_table" in str(report)
    with pytest.raises(ValueError, match="at least 2 images of each, got 1 real ones"):
        between(torch.zeros(1, 2), normal(4, 2))
    with pytest.raises(ValueError, match="at least 2 images of each, got 1 made ones"):
        between(normal(4, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="more images than the 3 neighbours, got 8 and 3"):
        between(normal(8, 2), torch.zeros(3, 2), ["precision_recall"])


def test_metrics_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="a choice of fd, kd, precision_recall, score, got"):
        between(normal(5, 2), normal(5, 2), ["fid"])
    with pytest.raises(ValueError, match="needs class probabilities"):
        between(normal(5, 2), normal(5, 2), ["score"])


def test_without_torchmetrics_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.kid", None)
    with pytest.raises(ImportError, match=r"pip install 'ldmkit\[eval\]'"):
        between(normal(5, 2), normal(5, 2), ["fd"])
    with pytest.raises(ImportError, match=r"pip install 'ldmkit\[eval\]'"):
        between(normal(5, 2), normal(5, 2), ["kd"])
    assert between(normal(5, 2), normal(5, 2), ["precision_recall"]).figures


def pictures(count=6, side=16, seed=0):
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return [(255 * one).round().to(torch.uint8) for one in pixels]


def targets(images):
    return Targets([{"target": one} for one in images])


def test_pairs_are_means_of_the_images_own_numbers():
    truth, made = pictures(), pictures(seed=1)
    report = evaluate(targets(made), truth=targets(truth), batch=4, progress=False)
    a, b = (torch.stack(images).double() / 255 for images in (made, truth))
    for name, metric in (("psnr", psnr), ("ssim", ssim)):
        values = metric(a, b)
        assert report.pairs[name].values == pytest.approx(tuple(values.tolist()))
        assert report.pairs[name].mean == pytest.approx(float(values.mean()))
        assert report.pairs[name].standard_error == pytest.approx(float(values.std()) / 6**0.5)


def test_lpips_is_zero_for_the_truth_itself():
    torch.manual_seed(1)
    distance = LPIPS(VGG16(), [torch.rand(n) for n in (64, 128, 256, 512, 512)]).eval()
    both = targets(pictures(2))
    assert evaluate(both, truth=both, lpips=distance, progress=False).pairs["lpips"].mean == 0
    other = evaluate(targets(pictures(2, seed=1)), truth=both, lpips=distance, progress=False)
    assert other.pairs["lpips"].mean > 0
    assert len(other.protocol["measures"]["lpips"]["weights_sha256"]) == 64


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = torch.randn(200, 40, generator=torch.Generator().manual_seed(0))
    hits = sum(low <= 0 <= high for low, high in (summary(row.tolist()).interval for row in draws))
    assert 0.88 <= hits / 200 <= 0.99


def test_one_image_has_no_error_of_the_mean():
    one = summary([3.0])
    assert one.mean == one.interval[0] == one.interval[1] == 3
    assert math.isnan(one.standard_error)


def test_truth_of_another_size_or_number_is_refused():
    with pytest.raises(ValueError, match="got 6 results and 5 of truth"):
        evaluate(targets(pictures()), truth=targets(pictures(5)))
    with pytest.raises(ValueError, match=r"one size, got \(16, 16\) and \(18, 18\) for images \[0, 1, 2\]"):
        evaluate(targets(pictures()), truth=targets(pictures(side=18)), progress=False)


def test_calls_without_sense_are_refused():
    made, reference = targets(pictures()), Reference(targets(pictures()), Features("f", nn.Flatten().eval()), ["fd"])
    with pytest.raises(ValueError, match="nothing to compare with"):
        evaluate(made)
    with pytest.raises(ValueError, match="it has 5 images, and 6 are made"):
        evaluate(made, reference, floor=targets(pictures(5)))
    with pytest.raises(ValueError, match="there is no reference"):
        evaluate(made, truth=made, floor=made)
    with pytest.raises(ValueError, match=r"images of 18 x 18, and the reference begins with 16 x 16"):
        evaluate(targets(pictures(side=18)), reference, progress=False)
    with pytest.raises(ValueError, match="batch must be at least 1, got 0"):
        evaluate(made, truth=made, batch=0, progress=False)


@pytest.mark.parametrize("form", ["uint8", "float", "pil", "array"])
def test_an_image_is_the_same_bytes_in_every_form(form):
    images = pictures()
    forms = {
        "uint8": images,
        "float": [one.float() / 255 for one in images],
        "pil": [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in images],
        "array": [one.permute(1, 2, 0).numpy() for one in images],
    }
    assert torch.equal(targets(forms[form]).read([1, 3]), torch.stack([images[1], images[3]]))


def test_values_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got values in \[-1, 1\]"):
        targets([torch.linspace(-1, 1, 48).view(3, 4, 4)]).read([0])
    with pytest.raises(KeyError, match="record 0 has no 'target', it has \\['image'\\]"):
        Targets([{"image": 0}]).read([0])


def test_a_folder_is_read_in_order_and_brought_to_a_size(tmp_path):
    for number, one in enumerate(pictures(3, 8)):
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / f"{number}.png")
    assert torch.equal(Folder(tmp_path).read([2, 0]), torch.stack([pictures(3, 8)[2], pictures(3, 8)[0]]))
    Image.fromarray(np.zeros((6, 9, 3), np.uint8)).save(tmp_path / "3.png")
    with pytest.raises(ValueError, match=r"has 9 x 6 pixels and .* 8 x 8: give Folder\(path, size=\(H, W\)\)"):
        Folder(tmp_path).read([0, 3])
    assert Folder(tmp_path, size=(4, 6)).read([0, 3]).shape == (2, 3, 4, 6)
    assert "bicubic" in Folder(tmp_path, size=(4, 6)).facts()["resized"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("class-conditional", DIGITS)


OPTIONS = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0}


def test_an_image_has_its_own_seed_whoever_makes_it(pipe):
    samples = Samples(pipe, [{"label": 3, "target": None}] * 4, seed=5, options=OPTIONS)
    together, apart = samples.read([0, 1, 2, 3]), torch.cat([samples.read([i]) for i in (0, 1, 2, 3)])
    assert int((together.int() - apart.int()).abs().max()) <= 1  # sums in another order may round otherwise
    assert int((together[0].int() - together[1].int()).abs().max()) > 50
    alone = pipe(label=3, seed=7, output_type="pt", progress=False, **OPTIONS).images
    assert int((samples.read([2]).int() - (255 * alone).round().int()).abs().max()) <= 1


def test_the_protocol_says_how_images_were_made(pipe):
    facts = Samples(pipe, [{"label": 3}] * 4, seed=5, options=OPTIONS).facts()
    assert facts["seeds"] == "5 + the image's number"
    assert facts["call"]["sampler"] == "DDIM(eta=0.0)"
    assert facts["call"]["num_inference_steps"] == 2
    assert facts["call"]["guidance_scale"] == 2.0
    assert len(facts["model_sha256"]) == 64
    with pytest.raises(OptionError, match="may not hold seed"):
        Samples(pipe, [{}], options={"seed": 3})


def test_reconstructions_are_compared_with_their_images(pipe):
    images = targets([one[:1] for one in pictures(2, 32)])
    report = evaluate(Reconstructions(pipe.model, images), truth=images, progress=False)
    pixels = images.read([0])[:, :1].float() / 127.5 - 1
    again = ((pipe.model.decode(pipe.model.encode(pixels)) / 2 + 0.5).clamp(0, 1) * 255).round() / 255
    expected = psnr(again.expand(-1, 3, -1, -1), images.read([0]) / 255)
    assert report.pairs["psnr"].values[0] == pytest.approx(float(expected), rel=1e-4)


def test_throughput_counts_calls_and_steps(pipe, monkeypatch):
    samples, calls = Samples(pipe, [{"label": 3}] * 3, options=OPTIONS), []
    call = samples.call
    monkeypatch.setattr(samples, "call", lambda *given: calls.append(given) or call(*given))
    found = throughput(samples, batch=2, warm_up=1, repeats=2)
    assert [given[0] for given in calls] == [[0, 1]] * 4
    assert found.samples_per_second > 0
    assert 0 < found.seconds_per_step < 60
    once = Samples(pipe, [{"label": 3}], options={**OPTIONS, "num_inference_steps": 1})
    assert math.isnan(throughput(once, batch=1, warm_up=0, repeats=1).seconds_per_step)
    with pytest.raises(ValueError, match="a batch of 1 to 3 records"):
        throughput(samples, batch=4)


class Shades(nn.Module):
    """Mean colours of the quarters of an image."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(scope="module")
def reference():
    return Reference(Targets(ShapeScenes(40, 32)), Features("shades_v1", Shades().eval()), subset_size=20)


def test_a_report_is_written_with_its_protocol(reference, tmp_path):
    floor, made = Targets(ShapeScenes(30, 32, "val")), Targets(ShapeScenes(20, 32, "test"))
    report = evaluate(made, reference, truth=made, floor=floor, progress=False)
    report.write(tmp_path / "out")
    read = json.loads((tmp_path / "out" / "report.json").read_text())
    assert read["figures"] == pytest.approx(dict(report.figures))
    assert read["floor"].keys() == read["figures"].keys()
    assert read["pairs"]["psnr"]["mean"] == "inf"  # JSON has no infinity
    protocol = read["protocol"]
    assert protocol["floor"]["used"] == protocol["made"]["count"] == 20
    assert protocol["features"]["name"] == "shades_v1"
    assert protocol["figures"]["fd_shades_v1"]["by"] == "torchmetrics"
    assert protocol["figures"]["kd_shades_v1"]["subset_size"] == 20
    assert protocol["values"] == "images rounded to 8 bits"
    assert {"torch", "ldmkit", "torchmetrics"} <= protocol["versions"].keys()
    assert protocol["date"].endswith("+00:00")
    for name in ("figures.png", "pairs.png", "samples.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.convert("RGB").getextrema() != ((255, 255),) * 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "figures.png",
        "pairs.png",
        "report.json",
        "samples.png",
    ]


def test_the_floor_is_measured_on_as_many_images(reference):
    floor = Targets(ShapeScenes(30, 32, "val"))
    few = evaluate(Targets(ShapeScenes(20, 32, "test")), reference, floor=floor, progress=False).floor
    assert few == pytest.approx(reference.measure(Targets(ShapeScenes(20, 32, "val"))))


def test_a_reference_can_be_used_again(reference):
    made = Targets(ShapeScenes(20, 32, "test"))
    first = reference.measure(made)
    reference.measure(Targets(ShapeScenes(25, 32, "val")))
    assert reference.measure(made) == first


def test_a_sweep_draws_a_curve_for_every_figure(reference, tmp_path):
    scenes = ShapeScenes(24, 32, "test")

    def faded(share):
        return Targets([{"target": share * record["target"]} for record in scenes])

    found = sweep("share", [0.25, 1.0], faded, reference, floor=Targets(scenes), progress=False)
    assert found.reports[0].figures["fd_shades_v1"] > 2 * found.reports[1].figures["fd_shades_v1"]
    assert found.reports[1].figures == pytest.approx(dict(found.reports[1].floor))
    found.write(tmp_path)
    names = ["report.json", "samples-0.25.png", "samples-1.png", "sweep.png", "tradeoff.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert json.loads((tmp_path / "report.json").read_text())["values"] == [0.25, 1.0]
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.size == (2 * 480, 2 * 320)  # four figures
    with pytest.raises(ValueError, match="sets of one length, got 0 sets"):
        sweep("share", [], faded, reference)
