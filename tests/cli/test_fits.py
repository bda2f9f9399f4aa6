"""`preread fits`: what one machine learned is pushed, listed, and pulled to where another finds it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preread.align import guide_bytes, mapping_bytes
from preread.cli.fits import checked, chosen
from preread.cloud.app import create_app
from preread.codec import profile_bytes
from preread.engine.model import fingerprint_of
from preread.errors import CorruptData
from preread.fit import decisions, family, guided
from preread.fit import map as maps
from preread.fit.calibration import Calibration, Scale
from preread.fit.fits import described
from preread.store.auth import Keys
from preread.store.guard import Access
from preread.store.objects import Objects, open_store
from preread.testing.cloud import RandomPublisher, serving
from preread.testing.fits import FILES, GATE, GUIDE, LARGE, MAPPING, SHAPE, SMALL
from preread.testing.profile import plain_profile
from preread.testing.store import put_profile_of
from preread.values import Fingerprint
from preread.wire.fits import FitKind

STEPS = (0.05, 0.0015), (0.1, 0.003), (0.2, 0.02)
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def of(tiny_model: Path) -> Fingerprint:
    return fingerprint_of(tiny_model)


@pytest.fixture(scope="module")
def folder(of: Fingerprint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of every kind for the tiny model, as fits on another machine left them."""
    files: dict[FitKind, bytes] = {
        "codec": profile_bytes.dumps(plain_profile(of, SHAPE, 4, dict(zip(("b4", "b3", "b2"), STEPS, strict=True)))),
        "map": mapping_bytes.dumps(replace(MAPPING, small=of)),
        "guide": guide_bytes.dumps(replace(GUIDE, small=of)),
        "decisions": decisions.dumps(Calibration({"choice": Scale(1.9)}, 120), of),
        "family": family.dumps(msgspec.structs.replace(GATE, model=of)),
    }
    folder = tmp_path_factory.mktemp("fits")
    for kind, data in files.items():
        (folder / kind).write_bytes(data)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def cloud(store: Objects, of: Fingerprint) -> Iterator[str]:
    with serving(create_app(store, RandomPublisher(store), models={of: "tiny", LARGE: "big"})) as url:
        yield url


def test_what_was_pushed_is_listed_with_what_it_is_worth(
    preread: Run, cloud: str, folder: Path, tmp_path: Path, of: Fingerprint
) -> None:
    pushed = preread("fits", "push", *(str(folder / kind) for kind in FILES), "--cloud", cloud)
    assert pushed.code == 0 and pushed.out.count("pushed ") == 5 and "published with it from now on" in pushed.out
    listed = preread("fits", "ls", "--cloud", cloud).out
    head, *rows = listed.splitlines()
    assert head.split()[:4] == ["KIND", "MODEL", "READS", "SIZE"] and len(rows) == 5
    by_kind = {row.split()[0]: row for row in rows}
    assert set(by_kind) == set(FILES) and all(f"tiny {of[:12]}" in row for row in rows)
    assert "guided -0.0300 [-0.0500, -0.0100], beyond its control -0.0200 [-0.0300, -0.0100]" in by_kind["guide"]
    assert f"big {LARGE[:12]}" in by_kind["map"] and "mapped from layer 1 on +0.0120" in by_kind["map"]
    assert "b4 +0.0015 … b2 +0.0200" in by_kind["codec"] and "120 questions" in by_kind["decisions"]
    told = json.loads(preread("fits", "ls", "--json", "--cloud", cloud).out)
    assert {one["kind"]: one["fingerprint"] for one in told} == dict.fromkeys(FILES, of)
    assert next(one for one in told if one["kind"] == "guide")["measured"][0]["dloss_ci"] == [-0.05, -0.01]
    offline = json.loads(preread("fits", "ls", "--json", "--store", str(tmp_path / "store")).out)
    assert [one["id"] for one in offline] == [one["id"] for one in told]


def test_what_is_pulled_lies_where_it_is_found(
    preread: Run,
    cloud: str,
    folder: Path,
    tiny_model: Path,
    of: Fingerprint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decisions, "usual_path", lambda model: tmp_path / "new" / f"{model}.json")
    monkeypatch.setattr(family, "usual_path", lambda gate: tmp_path / "gates" / f"{gate.source}.json")
    monkeypatch.chdir(tmp_path)
    assert preread("fits", "push", *(str(folder / kind) for kind in FILES), "--cloud", cloud).code == 0
    pulled = preread("fits", "pull", "--model", str(tiny_model), "--cloud", cloud)
    assert pulled.code == 0 and pulled.out.count("\n") == 5, pulled.err
    assert decisions.found(None, of) == Calibration({"choice": Scale(1.9)}, 120)
    (mapping,), (guide,), (profile,) = (list(tmp_path.glob(f"{kind}-*")) for kind in ("map", "guide", "codec"))
    assert maps.load(mapping).small == of == guided.load(guide).small
    assert profile_bytes.loads(profile.read_bytes()).fingerprint == of
    assert family.load(tmp_path / "gates" / f"{LARGE}.json") == msgspec.structs.replace(GATE, model=of)
    assert "streams contexts of big" in pulled.out
    assert f"--llm big --guide {guide.name}` reads by it" in pulled.out and "scales its probabilities" in pulled.out


def test_a_profile_is_pulled_into_the_store_of_a_cloud(
    preread: Run, cloud: str, folder: Path, tiny_model: Path, of: Fingerprint, tmp_path: Path
) -> None:
    preread("fits", "push", str(folder / "codec"), "--cloud", cloud)
    other = str(tmp_path / "other")
    pulled = preread("fits", "pull", "codec", "-m", str(tiny_model), "--cloud", cloud, "--store", other, "--json")
    assert json.loads(pulled.out)["path"] == other
    ref = asyncio.run(open_store(other).profile_of(of))
    assert ref is not None and ref.size_bytes == (folder / "codec").stat().st_size
    assert asyncio.run(open_store(other).read("profiles", ref.id)) == (folder / "codec").read_bytes()


def test_a_profile_that_the_cloud_fitted_itself_is_pulled_too(
    preread: Run, cloud: str, store: Objects, folder: Path, tiny_model: Path, of: Fingerprint, tmp_path: Path
) -> None:
    put_profile_of(store, of, (folder / "codec").read_bytes())
    pulled = preread("fits", "pull", "codec", "-m", str(tiny_model), "--cloud", cloud, "--out", str(tmp_path), "--json")
    assert Path(json.loads(pulled.out)["path"]).read_bytes() == (folder / "codec").read_bytes()


def test_one_fit_is_pulled_by_its_digest_whatever_model_is_here(
    preread: Run, cloud: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind in ("map", "guide"):
        preread("fits", "push", str(folder / kind), "--cloud", cloud)
    guide = described((folder / "guide").read_bytes()).id
    pulled = preread("fits", "pull", "--id", guide[:12], "--model", str(tmp_path / "absent.gguf"), "--cloud", cloud)
    assert pulled.code == 0 and (tmp_path / f"guide-{guide[:12]}.npz").read_bytes() == (folder / "guide").read_bytes()
    assert "--model tiny --llm big --guide" in pulled.out and not [*tmp_path.glob("map-*")]
    assert "0 fits begin with 'f00d'" in preread("fits", "pull", "--id", "f00d", "--cloud", cloud).err
    both = preread("fits", "pull", "codec", "--id", guide[:12], "--cloud", cloud)
    assert both.code == 1 and "is a guide" in both.err


def test_another_models_fits_are_not_pulled(
    preread: Run, cloud: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, data in FILES.items():
        (tmp_path / kind).write_bytes(data)
        assert preread("fits", "push", str(tmp_path / kind), "--cloud", cloud).code == 0
        (tmp_path / kind).unlink()
    ran = preread("fits", "pull", "--model", str(tiny_model), "--cloud", cloud)
    assert ran.code == 1 and "has no fit for" in ran.err and [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"text", "does not end as an archive"),
        (guide_bytes.dumps(replace(GUIDE, control=True)), "a guide's control"),
        (FILES["decisions"] + b" " * 70_000, "at most 65536 bytes"),
    ],
)
def test_what_cannot_be_pushed_is_told_before_it_is_sent(preread: Run, tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "it").write_bytes(data)
    ran = preread("fits", "push", str(tmp_path / "it"), "--cloud", "http://127.0.0.1:1")
    assert ran.code == 1 and told in ran.err and ran.err.count("\n") == 1
    absent = preread("fits", "push", str(tmp_path / "absent"), "--cloud", "http://127.0.0.1:1")
    assert absent.code == 1 and "cannot read" in absent.err


def test_who_has_no_key_is_told_which_is_missing(preread: Run, store: Objects, folder: Path) -> None:
    keys = Keys.of(["publish:writer", "reader"], "read")
    with serving(create_app(store, RandomPublisher(store), Access(keys))) as url:
        push = ["fits", "push", str(folder / "map"), "--cloud", url]
        assert "give a key with --api-key-file" in preread(*push).err
        refused = preread(*push, "--api-key", "reader")
        assert refused.code == 1 and "this needs publish" in refused.err
        assert preread(*push, "--api-key", "writer").code == 0
        assert preread("fits", "ls", "--cloud", url).code == 1
        assert "map" in preread("fits", "ls", "--cloud", url, "--api-key", "reader").out


def test_a_fit_is_removed_by_the_letters_that_ls_shows(preread: Run, cloud: str, folder: Path) -> None:
    for kind in ("map", "guide"):
        preread("fits", "push", str(folder / kind), "--cloud", cloud)
    ids = {one["kind"]: one["id"] for one in json.loads(preread("fits", "ls", "--json", "--cloud", cloud).out)}
    assert preread("fits", "rm", ids["map"][:12], "--cloud", cloud).out == f"removed {ids['map']}\n"
    assert [one["kind"] for one in json.loads(preread("fits", "ls", "--json", "--cloud", cloud).out)] == ["guide"]
    assert "0 fits begin with" in preread("fits", "rm", ids["map"][:12], "--cloud", cloud).err


def test_whose_fits_are_meant_has_to_be_said(preread: Run, tmp_path: Path) -> None:
    assert "--cloud URL" in preread("fits", "ls").err
    ran = preread("fits", "pull", "--out", str(tmp_path / "absent"), "--cloud", "http://127.0.0.1:1")
    assert ran.code == 1 and "is no folder" in ran.err


def test_what_is_not_what_was_listed_is_not_kept() -> None:
    listed = described(FILES["guide"])
    assert checked(listed, FILES["guide"]) == FILES["guide"]
    for other in (
        msgspec.structs.replace(listed, kind="map"),
        msgspec.structs.replace(listed, fingerprint=LARGE),
        msgspec.structs.replace(listed, large=SMALL),
    ):
        with pytest.raises(CorruptData, match="nothing is kept"):
            checked(other, FILES["guide"])


DESCRIBED = {kind: described(data) for kind, data in FILES.items()}


@given(st.lists(st.tuples(st.sampled_from(list(FILES)), st.booleans()), max_size=12), st.sampled_from([None, *FILES]))
def test_all_mappings_and_guides_of_the_model_are_chosen_and_the_newest_of_the_rest(
    drawn: list[tuple[FitKind, bool]], kind: FitKind | None
) -> None:
    fits = [
        msgspec.structs.replace(DESCRIBED[of], id=f"{at:064}", fingerprint=SMALL if ours else LARGE)
        for at, (of, ours) in enumerate(drawn)
    ]
    found = chosen(fits, SMALL, kind)
    assert all(fit.fingerprint == SMALL and kind in (None, fit.kind) for fit in found)
    for each in FILES:
        wanted = [fit for fit in fits if (fit.kind, fit.fingerprint) == (each, SMALL) and kind in (None, each)]
        of_kind = [fit for fit in found if fit.kind == each]
        assert of_kind == (wanted if each in ("map", "guide") else wanted[-1:])
