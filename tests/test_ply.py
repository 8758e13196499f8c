"""Splat files: the bytes, the round trip, and the sentences about files that are not what they say."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splatpipe.scene.arrays import Similarity
from splatpipe.splatting import ply
from splatpipe.splatting.ply import SplatFileError, Splats, read_header, read_splats, write_splats


def make_splats(n: int, degree: int = 3, seed: int = 0) -> Splats:
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return Splats(array(n, 3), array(n, 4), array(n, 3), array(n), array(n, 1, 3), array(n, (degree + 1) ** 2 - 1, 3))


def assert_equal(a: Splats, b: Splats) -> None:
    for name in ("means", "quats", "scales", "opacities", "sh0", "shN"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def parse_independently(path: Path) -> tuple[list[str], list[tuple[float, ...]]]:
    """Property names and rows by the PLY specification alone, with struct."""
    data = path.read_bytes()
    head, body = data.split(b"end_header\n", 1)
    lines = head.decode("ascii").split("\n")
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex "))
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    row = struct.Struct(f"<{len(names)}f")
    assert len(body) == count * row.size
    return names, list(row.iter_unpack(body))


def write_foreign(path: Path, header: list[str], rows: bytes) -> None:
    path.write_bytes(("\n".join(["ply", *header, "end_header"]) + "\n").encode() + rows)


def test_bytes_are_the_inria_layout(tmp_path: Path) -> None:
    splats = make_splats(5)
    write_splats(tmp_path / "a.ply", splats, ["splatpipe 0.1.0", "patch p007"])
    names, rows = parse_independently(tmp_path / "a.ply")
    assert names == [
        *["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"],
        *[f"f_rest_{i}" for i in range(45)],
        *["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"],
    ]
    row = dict(zip(names, rows[3], strict=True))
    assert (row["x"], row["y"], row["z"]) == tuple(splats.means[3])
    assert (row["nx"], row["ny"], row["nz"]) == (0, 0, 0)
    assert row["f_dc_1"] == splats.sh0[3, 0, 1]
    assert row["f_rest_0"] == splats.shN[3, 0, 0]
    assert row["f_rest_14"] == splats.shN[3, 14, 0]
    assert row["f_rest_15"] == splats.shN[3, 0, 1], "f_rest is channel-major: 15 starts green"
    assert row["f_rest_44"] == splats.shN[3, 14, 2]
    assert row["opacity"] == splats.opacities[3]
    assert row["scale_2"] == splats.scales[3, 2]
    assert row["rot_0"] == splats.quats[3, 0]
    assert b"comment patch p007\n" in (tmp_path / "a.ply").read_bytes()


def test_gsplat_exports_the_same_bytes_after_the_header(tmp_path: Path) -> None:
    torch, gsplat = pytest.importorskip("torch"), pytest.importorskip("gsplat")
    splats = make_splats(50)
    write_splats(tmp_path / "a.ply", splats)
    arrays = (splats.means, splats.scales, splats.quats, splats.opacities, splats.sh0, splats.shN)
    theirs = gsplat.export_splats(*(torch.from_numpy(array) for array in arrays), format="ply")
    (tmp_path / "b.ply").write_bytes(theirs)
    assert_equal(read_splats(tmp_path / "b.ply"), splats)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(0, 40), degree=st.integers(0, 3), seed=st.integers(0, 2**32 - 1), chunk=st.integers(1, 50))
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, n: int, degree: int, seed: int, chunk: int) -> None:
    splats = make_splats(n, degree, seed)
    path = tmp_path / "a.ply"
    assert write_splats(path, splats) == n
    assert_equal(read_splats(path), splats)
    header = read_header(path)
    assert (header.count, header.sh_degree) == (n, degree)
    chunks = list(ply.iter_rows(header, chunk_rows=chunk))
    assert all(len(rows) <= chunk for rows in chunks)
    assert sum(len(rows) for rows in chunks) == n


def test_property_order_type_and_extra_properties_do_not_matter(tmp_path: Path) -> None:
    splats = make_splats(7, degree=1)
    names = [name for name in ply.columns(1) if name not in ply.NORMALS]
    shuffled = [names[i] for i in np.random.default_rng(1).permutation(len(names))]
    table = np.zeros(7, [(name, "<f8") for name in shuffled] + [("label", "u1")])
    rows = ply.to_rows(splats)
    for i, name in enumerate(ply.columns(1)):
        if name in names:
            table[name] = rows[:, i]
    properties = [f"property double {name}" for name in shuffled] + ["property uchar label"]
    write_foreign(
        tmp_path / "a.ply",
        ["format binary_little_endian 1.0", "element vertex 7", *properties],
        table.tobytes(),
    )
    assert_equal(read_splats(tmp_path / "a.ply"), splats)


def test_a_lower_degree_is_padded_per_channel(tmp_path: Path) -> None:
    splats = make_splats(4, degree=1)
    write_splats(tmp_path / "a.ply", splats)
    (rows,) = ply.iter_rows(read_header(tmp_path / "a.ply"), sh_degree=3)
    padded = ply.from_rows(rows)
    np.testing.assert_array_equal(padded.shN[:, :3], splats.shN)
    assert not padded.shN[:, 3:].any()


def test_rows_that_are_not_finite_are_dropped_and_counted(tmp_path: Path) -> None:
    splats = make_splats(6)
    splats.means[1, 2] = np.nan
    splats.opacities[4] = np.inf
    assert write_splats(tmp_path / "a.ply", splats) == 4
    assert_equal(read_splats(tmp_path / "a.ply"), splats.select(np.array([0, 2, 3, 5])))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_splats(path, make_splats(3))
    before = path.read_bytes()
    with pytest.raises(RuntimeError), ply.splat_writer(path, 3) as writer:
        writer.append(ply.to_rows(make_splats(5)))
        raise RuntimeError
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ply"]


def test_a_truncated_file_is_refused_with_both_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_splats(path, make_splats(100))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SplatFileError, match=r"a\.ply: the header announces 100 Gaussians, the file holds 99 "):
        read_splats(path)


def test_a_lying_count_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_splats(path, make_splats(2))
    path.write_bytes(path.read_bytes().replace(b"element vertex 2\n", b"element vertex 999999999999\n"))
    with pytest.raises(SplatFileError, match="announces 999999999999 Gaussians"):
        read_splats(path)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (["format ascii 1.0", "element vertex 0"], "format is ascii"),
        (["format binary_little_endian 1.0", "element chunk 3"], "compressed PLY"),
        (["format binary_little_endian 1.0", "element vertex -3"], "no valid count"),
        (["format binary_little_endian 1.0", "element vertex 0", "property float x"], "point cloud"),
        (["format binary_little_endian 1.0", "element vertex 0", "property list uchar int n"], "not a property"),
    ],
)
def test_foreign_files_are_refused_with_a_sentence(tmp_path: Path, header: list[str], sentence: str) -> None:
    write_foreign(tmp_path / "a.ply", header, b"")
    with pytest.raises(SplatFileError, match=sentence):
        read_header(tmp_path / "a.ply")


def test_an_odd_number_of_sh_values_is_refused(tmp_path: Path) -> None:
    names = [*ply.columns(0), "f_rest_0"]
    properties = [f"property float {name}" for name in names]
    write_foreign(tmp_path / "a.ply", ["format binary_little_endian 1.0", "element vertex 0", *properties], b"")
    with pytest.raises(SplatFileError, match="1 f_rest properties"):
        read_header(tmp_path / "a.ply")


def test_a_missing_or_empty_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SplatFileError, match="cannot be read"):
        read_header(tmp_path / "none.ply")
    (tmp_path / "a.ply").write_bytes(b"")
    with pytest.raises(SplatFileError, match="not a PLY file"):
        read_header(tmp_path / "a.ply")


@given(comment=st.text(max_size=60))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_comment_can_break_the_header(tmp_path: Path, comment: str) -> None:
    splats = make_splats(2, degree=0)
    write_splats(tmp_path / "a.ply", splats, [comment, "end_header\nelement vertex 9"])
    assert_equal(read_splats(tmp_path / "a.ply"), splats)


def test_going_to_training_coordinates_and_back_changes_nothing_but_rounding() -> None:
    splats = make_splats(20)
    similarity = Similarity(250.0, (1.0, -2.0, 3.0))
    training = ply.to_training(splats, similarity)
    np.testing.assert_allclose(training.means, splats.means * 250.0 + np.array([1, -2, 3]), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(np.exp(training.scales), np.exp(splats.scales) * 250.0, rtol=1e-4)
    back = ply.transform(training, similarity)
    np.testing.assert_allclose(back.means, splats.means, atol=1e-5)
    np.testing.assert_allclose(back.scales, splats.scales, atol=1e-5)
    np.testing.assert_array_equal(back.shN, splats.shN)
