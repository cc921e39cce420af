"""``fastmalade train`` and ``fastmalade evaluate`` on files of real digits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from fastmalade import Purifier, load_classifier
from fastmalade.data import embedded_digits, write_idx
from fastmalade.pretrained import read_header


@pytest.fixture
def digit_files(tmp_path):
    images, labels = embedded_digits()
    write_idx(tmp_path / "images.gz", images[:200])
    np.save(tmp_path / "labels.npy", labels[:200])
    return ["--images", tmp_path / "images.gz", "--labels", tmp_path / "labels.npy"]


def test_train_both_and_resume(tmp_path, invoke, digit_files):
    torch.set_num_threads(1)
    classifier, purifier = tmp_path / "d.safetensors", tmp_path / "sdae.safetensors"
    result = invoke("train", "classifier", classifier, "--name", "D", "--epochs", 3, *digit_files)
    assert result.exit_code == 0, result.output
    assert "validation_accuracy" in result.stdout
    assert load_classifier(classifier)(torch.rand(2, 1, 28, 28)).shape == (2, 10)

    arguments = ["train", "autoencoder", purifier, "--classifier", classifier, "--epochs", 2, "--steps", 4]
    arguments += ["--sigma2", 0.1, "--checkpoint", tmp_path / "run.pt", *digit_files]
    assert invoke(*arguments).exit_code == 0
    first = purifier.read_bytes()
    purifier.unlink()
    assert invoke(*arguments).exit_code == 0  # nothing left to train: written again from the checkpoint
    assert purifier.read_bytes() == first
    assert Purifier.from_pretrained(purifier).chain.n_steps == 4
    facts = read_header(purifier)["training"]
    assert (facts["supervised"], facts["sigma2"], facts["n_images"]) == (True, 0.1, 180)


def test_train_under_attack(tmp_path, invoke, digit_files):
    torch.set_num_threads(1)
    robust, quick = tmp_path / "d.safetensors", ["--epochs", 1, "--attack-steps", 2, "--limit", 60, *digit_files]
    result = invoke(
        "train", "classifier", robust, "--name", "D", "--adversarial", "alp", "--epsilon", 0.1, "--norm", "l2", *quick
    )
    assert result.exit_code == 0, result.output
    facts = read_header(robust)["training"]
    assert (facts["adversarial"], facts["epsilon"], facts["norm"], facts["attack_steps"]) == ("alp", 0.1, "l2", 2)
    assert "validation_attacked_accuracy" in result.stdout
    again = invoke("train", "classifier", robust, "--name", "D", "--initial", robust, "--epochs", 1, *digit_files)
    assert again.exit_code == 0, again.output
    assert read_header(robust)["training"]["warm_start"] is True

    output, behind = tmp_path / "r.safetensors", tmp_path / "f.safetensors"
    arguments = ["train", "purifier", output, "--classifier", robust, "--epsilon", 0.2, *quick]
    result = invoke(*arguments, "--classifier-output", behind, "--checkpoint", tmp_path / "run.pt")
    assert result.exit_code == 0, result.output
    facts = read_header(output)["training"]
    assert (facts["train_classifier"], facts["epsilon"], facts["n_images"]) == (True, 0.2, 60)
    assert Purifier.from_pretrained(output).chain == Purifier.from_pretrained("malade-mnist").chain
    moved, still = (next(load_classifier(file).parameters()) for file in (behind, robust))
    assert not torch.equal(moved, still)
    assert (tmp_path / "run.pt.log").read_text().count("epoch 1/1") == 1
    for more, message in (
        (["--clean-share", 2], "clean_share: expected a number from 0 to 1"),
        (["--purifier", "magnet-mnist"], "expected"),
        (["--classifier", "nonsense"], "expected a file or one of the shipped names"),
    ):
        result = invoke(*arguments, *more)
        assert result.exit_code == 2, result.output
        assert message in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", 0], "epochs: expected a positive integer, got 0"),
        (["--sigma2", -1], "sigma2: expected a positive number"),
        (["--holdout", 1.5], "--holdout: expected a share"),
        (["--limit", 0], "--limit: expected at least 1"),
        (["--classifier", "nonsense"], "expected a file or one of the shipped names"),
        (["--steps", -1], "n_steps: expected"),
    ],
)
def test_bad_training_arguments_are_one_line(tmp_path, invoke, digit_files, arguments, message):
    result = invoke("train", "autoencoder", tmp_path / "out.safetensors", *digit_files, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_images_without_labels_and_damaged_files_are_errors(tmp_path, invoke, digit_files):
    out = tmp_path / "out.safetensors"
    assert "--images and --labels together" in invoke("train", "classifier", out, *digit_files[:2]).stderr
    (tmp_path / "images.gz").write_bytes(b"no images")
    result = invoke("train", "classifier", out, *digit_files)
    assert result.exit_code == 2
    assert "expected an IDX file" in result.stderr


@pytest.mark.mnist
def test_evaluate_prints_the_table_and_writes_the_figures(tmp_path, invoke, mnist, model_path):
    assert len(mnist["test"][1]) == 10_000
    output = tmp_path / "figures.json"
    arguments = ["transfer", "--models", model_path, "--attacks", "fgsm:0.2,pgd:0.1", "--images", 20]
    arguments += ["--steps", 2, "--cache-dir", tmp_path / "cache", "--output", output]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(output.read_text())["rows"]
    assert [(row["attack"], row["epsilon"], row["n"]) for row in rows] == [
        ("none", 0.0, 20),
        ("fgsm", 0.2, 20),
        ("pgd", 0.1, 20),
    ]
    first = output.read_text()
    assert invoke(*arguments).exit_code == 0
    assert json.loads(output.read_text())["rows"] == json.loads(first)["rows"]
    assert "MNIST test, 20 images" in result.stdout


@pytest.mark.parametrize("attacks", ["pgd", "pgd:x", "pgd:-1", "cw:0.3"])
def test_evaluate_refuses_unknown_attacks(invoke, attacks):
    result = invoke("transfer", "--attacks", attacks)
    assert result.exit_code == 2
    assert "--attacks: expected fgsm or pgd:EPSILON" in result.stderr
