"""`expertweaver push` against a stand-in for the hub: a dry run by default, only verified files, no secrets."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from support.commands import Complaint, check_complaint, hashes, refusal, run
from support.sparse import convert_variant

REPO = "somebody/tiny-moe"
TOKEN = "hf_" + "secret" * 4


@dataclass
class Hub:
    """Remembers what was asked of it."""

    private: bool = False
    error: Exception | None = None
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error:
            raise self.error

    def repo_info(self, repo_id: str) -> Any:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append(("upload_folder", options))
        return SimpleNamespace(repo_url=f"https://hub.example/{options['repo_id']}")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stand_in)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return stand_in


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion as it was finished: the tokenizer that goes with its hashes."""
    return convert_variant("llama", tmp_path_factory.mktemp("push"), tokenizer=False)


@pytest.fixture
def sparse(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "sparse"))


def refuse(complaint: Complaint, *arguments: str | Path, code: int = 3) -> None:
    _, [problem] = refusal(run("push", "--json", *arguments), code)
    check_complaint(problem, complaint)


def test_a_dry_run_lists_and_sends_nothing(hub: Hub, sparse: Path) -> None:
    before = hashes(sparse)
    result = run("push", sparse, REPO, "--private")
    assert result.exit_code == 0, result.output
    assert hub.calls == []
    assert hashes(sparse) == before
    for name in ("config.json", "README.md", "model-00001-of-00004.safetensors", "expertweaver/manifest.json"):
        assert name in result.stdout
    assert "left out: expertweaver/run.json" in result.stdout
    assert f"to {REPO} (private)" in result.stdout
    assert "nothing was sent" in result.stdout
    assert "name paths of this machine" in result.stderr
    assert "names no licence" in result.stderr


def test_yes_sends_exactly_what_the_dry_run_listed(hub: Hub, sparse: Path) -> None:
    (sparse / "notes.txt").write_text("mine", "utf-8")
    listed = json.loads(run("push", sparse, REPO, "--json").stdout)
    assert listed["left_out"] == ["expertweaver/run.json", "notes.txt"]
    assert listed["url"] is None
    done = json.loads(run("push", sparse, REPO, "--yes", "--json").stdout)
    assert done == {**listed, "url": f"https://hub.example/{REPO}"}
    (_, created), (_, sent) = hub.calls
    assert created == {"repo_id": REPO, "private": False, "exist_ok": True}
    assert sent["folder_path"] == sparse
    assert sent["allow_patterns"] == list(listed["files"])
    assert listed["files"] == {name: (sparse / name).stat().st_size for name in listed["files"]}
    assert listed["num_bytes"] == sum(listed["files"].values())


def test_an_edited_card_is_sent_and_told(hub: Hub, sparse: Path) -> None:
    card = sparse / "README.md"
    card.write_text(card.read_text("utf-8").replace("---\n", "---\nlicense: apache-2.0\n", 1), "utf-8")
    result = run("push", sparse, REPO, "--yes")
    assert result.exit_code == 0, result.output
    assert "the card was edited" in result.stderr
    assert "names no licence" not in result.stderr


def test_what_differs_from_what_was_verified_is_refused(hub: Hub, sparse: Path) -> None:
    shard = sparse / "model-00002-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    refuse(Complaint(shard.name, "SHA-256", "", "Copy or convert"), sparse, REPO, "--yes")
    assert hub.calls == []


def test_what_is_no_finished_conversion_is_refused(hub: Hub, sparse: Path) -> None:
    finished = Complaint("dense", "`expertweaver convert` finished", "no manifest", "expertweaver convert")
    (sparse / "README.md").unlink()
    refuse(Complaint("sparse", "a model card", "none", "restore its card"), sparse, REPO, "--yes")
    refuse(Complaint("nowhere", "a local model folder", "nothing of this kind", "convert"), sparse / "nowhere", REPO)
    dense = Path(shutil.copytree(sparse, sparse.with_name("dense")))
    shutil.rmtree(dense / "expertweaver")
    refuse(finished, dense, REPO, "--yes")
    assert hub.calls == []


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "https://hub/a/b", "-x/y", "a b/c"])
def test_an_id_that_is_none_is_refused(repo: str, hub: Hub, sparse: Path) -> None:
    refuse(Complaint("REPO_ID", "owner/name", repo, "Name your account"), "--", sparse, repo, code=2)


def test_what_was_meant_to_be_private_does_not_go_public(hub: Hub, sparse: Path) -> None:
    refuse(Complaint(REPO, "a private repository", "is public", "its settings"), sparse, REPO, "--yes", "--private")
    assert [name for name, _ in hub.calls] == ["create_repo"]
    hub.private = True
    assert run("push", sparse, REPO, "--yes", "--private").exit_code == 0


def test_an_error_of_the_hub_is_explained_without_the_token(hub: Hub, sparse: Path) -> None:
    hub.error = OSError(f"401 for {TOKEN}")
    complaint = Complaint(REPO, "a hub repository that can be written", "401 for hf_...", "hf auth login")
    refuse(complaint, sparse, REPO, "--yes")
    result = run("push", sparse, REPO, "--yes")
    assert TOKEN not in result.output
    assert "Traceback" not in result.output
