"""Weights of teachers: what is read, what is refused, and that nothing in a file is executed."""

import io
import pathlib
import pickle
import struct
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdeblur.errors import InputError
from jaxdeblur.networks.teachers import dwdn, weights

PUBLISHED = pathlib.Path(__file__).parents[3] / "../shared/weights/dmphn_1_2_4_8"
SMALL = dwdn.DwdnConfig(features=3, widths=(4, 6), num_residual_blocks=1, filter_size=3)


@pytest.fixture(scope="module")
def params():
    shapes = jax.eval_shape(dwdn.Dwdn(SMALL).init, jax.random.key(0), jnp.zeros((16, 16)), jnp.zeros((3, 3)))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype(np.float32), shapes["params"])


@pytest.fixture
def own_file(params, tmp_path):
    path = tmp_path / "dwdn.msgpack"
    weights.save_teacher(path, "dwdn", params)
    return path


class _Payload:
    """Creates a file if it is unpickled as pickles are."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def _legacy_around(pickled, keys):
    """The pickles of an older checkpoint, the state dict's given as bytes; storages may follow."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join([*(pickle.dumps(part, protocol=2) for part in head), pickled, pickle.dumps(keys, protocol=2)])


def _legacy(content):
    return _legacy_around(pickle.dumps(content, protocol=2), [])


def _zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, protocol=2))
    return buffer.getvalue()


@pytest.mark.parametrize("make", [_legacy, _zipped, lambda content: pickle.dumps(content, protocol=4)])
@pytest.mark.parametrize("bury", [lambda p: p, lambda p: {"layer1.weight": [p]}])
def test_code_in_a_pickle_is_refused_and_not_executed(tmp_path, make, bury):
    trap = tmp_path / "trap"
    content = bury(_Payload(trap))
    pickle.loads(pickle.dumps(content))
    assert trap.exists()  # the payload works
    trap.unlink()
    path = tmp_path / "encoder_lv1.pkl"
    path.write_bytes(make(content))
    with pytest.raises(
        InputError, match=r"asks for (builtins|io|_io)\.open to be called.*refused, nothing was executed"
    ) as caught:
        weights.read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("module", "name"), [("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"), ("collections", "OrderedDict")]
)
def test_what_stands_in_for_known_names_cannot_be_changed(tmp_path, module, name):
    known = f"c{module}\n{name}\n".encode()
    path = tmp_path / "checkpoint.pkl"
    # Setting an attribute fails; without it the file is sound, but holds no tensor.
    for change, message in ((b"N}X\x08\x00\x00\x00__call__K\x01s\x86b", "damaged"), (b"", "no named tensors")):
        path.write_bytes(_legacy_around(b"\x80\x02}X\x01\x00\x00\x00x" + known + change + b"s.", []))
        with pytest.raises(InputError, match=message):
            weights.read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_both_layouts_are_read(tmp_path, legacy):
    torch = pytest.importorskip("torch", reason="makes its checkpoints with torch (the dev extra)")
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {
        "whole": base,
        "turned": base.T,
        "part": base[1:3, ::2],
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "long": base.long(),
        "double": base.double(),
        "number": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(base),
    }
    path = tmp_path / "checkpoint.pt"
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}
    torch.save(wrapped, path, _use_new_zipfile_serialization=not legacy)
    found = weights.read_checkpoint(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name].astype(np.float64), tensor.detach().double().numpy(), err_msg=name)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_a_truncated_checkpoint_is_a_one_line_error(tmp_path, legacy, keep):
    torch = pytest.importorskip("torch", reason="makes its checkpoints with torch (the dev extra)")
    path = tmp_path / "checkpoint.pt"
    torch.save({"weight": torch.zeros(5000)}, path, _use_new_zipfile_serialization=not legacy)
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if isinstance(keep, int) else int(keep * len(raw))])
    with pytest.raises(InputError, match="damaged") as caught:
        weights.read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("shape", "strides"), [((10**9,), (0,)), ((5,), (1,)), ((2,), (-1,)), ((2, 2), (4, 1))])
def test_tensors_beyond_their_storage_are_refused(tmp_path, shape, strides):
    path = tmp_path / "checkpoint.pkl"

    def write(shape, strides):
        pickled = b"".join(
            [
                b"\x80\x02}X\x06\x00\x00\x00weightctorch._utils\n_rebuild_tensor_v2\n",
                b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04NtQK\x00",
                *(pickle.dumps(numbers, 2)[2:-1] for numbers in (shape, strides)),
                b"\x89NtRs.",
            ]
        )
        path.write_bytes(_legacy_around(pickled, ["0"]) + struct.pack("<q", 4) + np.arange(4, dtype="<f4").tobytes())

    write(shape, strides)
    with pytest.raises(InputError, match="damaged"):
        weights.read_checkpoint(path)
    write((4,), (1,))
    np.testing.assert_array_equal(weights.read_checkpoint(path)["weight"], np.arange(4))


def test_own_files_come_back_as_they_were(params, own_file):
    loaded = weights.load_teacher("dwdn", own_file)
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("name", weights.TEACHERS)
def test_without_weights_it_is_said_what_to_get_and_where_to_put_it(name, tmp_path):
    for path in (None, tmp_path / "nothing"):
        with pytest.raises(InputError, match=r"--teacher_weights=.*") as caught:
            weights.load_teacher(name, path)
        assert "\n" not in str(caught.value)
        assert {"dmphn": "encoder_lv1.pkl", "dwdn": "experiments/train_dwdn.py"}[name] in str(caught.value)


def test_an_unknown_teacher_is_refused():
    with pytest.raises(InputError, match="choose from dmphn, dwdn"):
        weights.load_teacher("other", None)


def test_missing_files_of_a_folder_are_named(tmp_path):
    (tmp_path / "encoder_lv1.pkl").write_bytes(b"")
    with pytest.raises(InputError, match=r"encoder_lv2\.pkl, encoder_lv3\.pkl.*decoder_lv4\.pkl missing"):
        weights.load_teacher("dmphn", tmp_path)


def test_a_folder_is_no_dwdn(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        weights.load_teacher("dwdn", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["in1"].pop("block0_first"), r"missing: in1/block0_first/bias, in1/block0_first/kernel"),
        (lambda p: p.update(more={"bias": np.zeros(3)}), r"left over: more/bias"),
        (
            lambda p: p["image"].update(kernel=np.zeros((5, 3, 4, 1))),
            r"shaped otherwise: image/kernel \(5×3×4×1 instead of 3×3×4×1\)",
        ),
        (lambda p: p["image"].update(bias=np.full(1, np.nan)), "not finite"),
    ],
)
def test_every_name_shape_and_number_is_checked(params, tmp_path, change, message):
    changed = jax.tree.map(np.asarray, params)
    change(changed)
    weights.save_teacher(tmp_path / "changed.msgpack", "dwdn", changed)
    with pytest.raises(InputError, match=message):
        weights.load_teacher("dwdn", tmp_path / "changed.msgpack")


def test_weights_of_another_teacher_are_refused(own_file, params, tmp_path):
    with pytest.raises(InputError, match="weights of dwdn, not of dmphn"):
        weights.load_teacher("dmphn", own_file)
    weights.save_teacher(tmp_path / "wrong.msgpack", "dmphn", params)
    with pytest.raises(InputError, match=r"does not fit dmphn; missing: .* and 237 more; left over: .* more"):
        weights.load_teacher("dmphn", tmp_path / "wrong.msgpack")


@pytest.mark.parametrize("content", [b"", b"no weights at all", b"\x82\xa7teacher\xa4dwdn\xa6params\xc0"])
def test_files_that_are_something_else_are_refused(tmp_path, content):
    path = tmp_path / "weights.msgpack"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged or holds no weights"):
        weights.load_teacher("dwdn", path)


def test_the_command_converts(own_file, tmp_path, capsys):
    target = tmp_path / "copy.msgpack"
    assert weights.main(["weights", "--teacher=dwdn", f"--from={own_file}", f"--to={target}"]) == 0
    assert "parameters of dwdn" in capsys.readouterr().out
    assert target.read_bytes() == own_file.read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [[], ["--teacher=dwdn"], ["--teacher=other"], ["--teacher=dwdn", "--from=nothing", "--to=x"], ["--bad=1"]],
)
def test_the_command_fails_in_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert weights.main(["weights", *arguments]) == 1
    assert capsys.readouterr().err.strip()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_a_one_line_error(params, tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        weights.save_teacher(tmp_path / "no" / "folder.msgpack", "dwdn", params)


def test_published_checkpoints_convert_and_come_back(tmp_path):
    if not PUBLISHED.is_dir():
        pytest.skip(f"needs the published weights in {PUBLISHED}")
    params = weights.load_teacher("dmphn", PUBLISHED)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 4 * (868_288 + 939_843)
    weights.save_teacher(tmp_path / "dmphn.msgpack", "dmphn", params)
    jax.tree.map(np.testing.assert_array_equal, weights.load_teacher("dmphn", tmp_path / "dmphn.msgpack"), params)
