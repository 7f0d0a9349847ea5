import copyreg
import io
import os
import pickle
import pickletools
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from handmim.utils.unpickle import Record, UnsafePickleError, check_torch_pickle, load_pickle
from synthesis.python2_pickle import dump


@pytest.fixture
def read(tmp_path):
    """Bytes (or an object to pickle) through a file."""

    def run(content, protocol: int = 2, allowed=None):
        path = tmp_path / "some.pkl"
        raw = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
        path.write_bytes(raw)
        return load_pickle(path, allowed)

    return run


def text(word: str) -> bytes:
    """Protocol 4 SHORT_BINUNICODE."""
    return b"\x8c" + bytes([len(word)]) + word.encode()


ARRAYS = {
    "double": np.arange(6.0).reshape(2, 3),
    "fortran": np.arange(6, dtype=np.int16).reshape(2, 3).T,
    "axes": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    "strided": np.arange(12, dtype=np.float32).reshape(3, 4)[::2, 1:3],
    "big-endian": np.array([1, 2, -3], ">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "bytes": np.array([b"ab", b"c"]),
    "text": np.array(["hé", "yy"]),
    "empty": np.zeros((0, 3)),
    "zero-dimensional": np.array(3.5),
}
VALUES = {
    "scalar": np.float64(1.5),
    "small scalar": np.int8(-3),
    "bool scalar": np.bool_(True),
    "text scalar": np.str_("hé"),
    "dtype": np.dtype(">f4"),
    "tuple": (1, (2.5, "x", None)),
    "sets": [{1, 2}, frozenset(["a"])],
    "bytes": [b"\x00\xff", b"", bytearray(b"qq")],
    "numbers": [10**30, -1, True, 1 + 2j],
    "text": "ünï",
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_python_3_writes_comes_back(read, protocol):
    got = read({"arrays": ARRAYS, "values": VALUES}, protocol)
    for name, array in ARRAYS.items():
        assert got["arrays"][name].dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(got["arrays"][name], array)
        assert got["arrays"][name].flags.writeable
    assert got["values"] == VALUES
    assert [type(v) for v in got["values"].values()] == [type(v) for v in VALUES.values()]


@pytest.mark.parametrize("protocol", [0, 2])
def test_what_python_2_wrote_comes_back_and_is_what_python_2_wrote(tmp_path, protocol):
    shared = [1, 2]
    arrays = {k: v for k, v in ARRAYS.items() if k != "text"}  # it had no such strings
    values = {
        "name": "003_cracker_box", "none": None, "words": "it's \"x\"", "flags": [True, False],
        "numbers": [0, 255, 256, 65536, -1, 2**40, 2**70, 0.5],
        "scalar": np.float64(2), "set": {"x"}, "twice": [shared, shared], "tuple": (1, 2, 3, 4, ()),
        "objects": np.array([None, "a"], dtype=object),
    }  # fmt: skip
    dump({"arrays": arrays, **values}, tmp_path / "old.pkl", protocol)
    got = load_pickle(tmp_path / "old.pkl")
    for name, array in arrays.items():
        assert got["arrays"][name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got["arrays"][name], array)
    assert {k: got[k] for k in values if k != "objects"} == {
        k: v for k, v in values.items() if k != "objects"
    }
    assert got["objects"].tolist() == [None, "a"]
    assert got["twice"][0] is got["twice"][1]
    assert [type(v) for v in got["flags"]] == [bool, bool]
    raw = (tmp_path / "old.pkl").read_bytes()
    plain = pickle.loads(raw, encoding="latin1")  # noqa: S301  numpy's own way gives the same
    for name, array in arrays.items():
        np.testing.assert_array_equal(plain["arrays"][name], array)
    assert raw[:2] == (b"\x80\x02" if protocol else b"(d")
    # pickletools takes no text that is not ASCII
    opcodes = list(pickletools.genops(raw if protocol else raw.replace(b"\\", b"/")))
    names = {arg for op, arg, _ in opcodes if op.name == "GLOBAL"}
    assert names == {
        "numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "numpy ndarray",
        "numpy dtype", "__builtin__ set",
    }  # fmt: skip
    assert not {op.name for op, _, _ in opcodes} & {"BINUNICODE", "BINBYTES", "SHORT_BINBYTES"}
    assert max(op.proto for op, _, _ in opcodes) == protocol
    assert [p.name for p in tmp_path.iterdir()] == ["old.pkl"]
    with pytest.raises(TypeError, match="object is not written"):
        dump({"a": [object()]}, tmp_path / "old.pkl")
    assert load_pickle(tmp_path / "old.pkl")["none"] is None  # the file before it is untouched


@pytest.mark.parametrize(
    ("line", "content"),
    [
        (rb"'\x00\x00\xf8?'", b"\x00\x00\xf8?"),
        (rb"'\'\"'", b"'\""),
        (rb'"it\'s"', b"it's"),
        (b'"it\'s"', b"it's"),
        (rb"'a\n\t\r\\n'", b"a\n\t\r\\n"),
        (b"'\xf8\x00\xff\x80'", b"\xf8\x00\xff\x80"),  # as it is, not escaped
        (b"'S'cos'", b"S'cos"),
        (b"''", b""),
    ],
)
def test_strings_of_protocol_0_are_bytes_as_python_2_shows_them(read, line, content):
    raw = b"S" + line + b"\np0\n."
    assert read(raw).encode("latin1") == content
    assert pickle.loads(raw, encoding="latin1") == content.decode("latin1")  # noqa: S301
    size = str(len(content)).encode()
    state = b"(I1\n(I" + size + b"\nt" + DTYPE_F8.replace(b"f8", b"u1") + b"I00\nS" + line + b"\nt"
    assert read(an_array(state)).tobytes() == content


@pytest.mark.parametrize("line", [b"'", b"", b"x", b"'x", b"x'", b"'x\"", b"'\\x0'", b"'\\'"])
def test_strings_without_their_quotes_are_damage(read, line):
    with pytest.raises(ValueError, match="damaged"):
        read(b"S" + line + b"\n.")


def test_numbers_of_protocol_0_are_read_as_pickle_does(read):
    assert read(b"(I7\nI-1\nI01\nI00\nL5L\nL5\nF0.1\nFinf\nF1e-05\nI0x10\nl.") == [
        7, -1, True, False, 5, 5, 0.1, float("inf"), 1e-05, 16
    ]  # fmt: skip


def test_arrays_inside_everything_are_settled(read):
    inner = np.arange(3)
    loop: list = [inner]
    loop.append(loop)
    got = read({"a": [(inner, {"b": inner})], "o": np.array([None, [inner]], object), "loop": loop})
    assert got["a"][0][0] is got["a"][0][1]["b"]  # one array stays one array
    assert got["o"][1][0].tolist() == [0, 1, 2]
    assert got["loop"][1] is got["loop"]
    assert got["loop"][0].tolist() == [0, 1, 2]


def calls(module: str, name: str, argument: str) -> dict[str, bytes]:
    """A call of module.name(argument) in every form that pickles know."""
    glob, arg = f"c{module}\n{name}\n".encode(), f"S{argument!r}\n".encode()
    stack_global = text(module) + text(name) + b"\x93"
    return {
        "REDUCE": glob + b"(" + arg + b"tR.",
        "INST": b"(" + arg + f"i{module}\n{name}\n.".encode(),
        "OBJ": b"(" + glob + arg + b"o.",
        "STACK_GLOBAL": b"\x80\x04" + stack_global + arg + b"\x85R.",
        "from memo": b"\x80\x04" + text(module) + b"\x940" + b"h\x00" + text(name) + b"\x93"
        + arg + b"\x85R.",
        "inside data": b"\x80\x02}(U\x01a](K\x01K\x02" + glob + arg + b"\x85ReU\x01bK\x01u.",
        "after numpy": b"cnumpy\ndtype\n0" + glob + arg + b"\x85R.",
        "as dict key": b"}(" + glob + arg + b"\x85RNu.",
        "framed": b"\x80\x04\x95" + struct.pack("<Q", len(stack_global) + len(arg) + 3)
        + stack_global + arg + b"\x85R.",
    }  # fmt: skip


@pytest.mark.parametrize("form", calls("os", "system", ""))
@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec")],
)
def test_calls_are_refused_in_every_form_and_nothing_runs(tmp_path, read, module, name, form):
    marker = tmp_path / "ran"
    order = f"touch {marker}" if name == "system" else f"open({str(marker)!r}, 'w').close()"
    bad = calls(module, name, order)[form]
    pickle.load(io.BytesIO(bad))  # noqa: S301  the attack is real: a plain load runs it
    assert marker.exists()
    marker.unlink()
    with pytest.raises(UnsafePickleError, match=rf"names {module}\.{name}: refused, nothing"):
        read(bad)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "getattr"), ("__builtin__", "getattr"), ("builtins", "__import__"),
        ("builtins", "open"), ("builtins", "type"), ("numpy", "load"), ("numpy", "fromfile"),
        ("numpy", "loads"), ("numpy._core.multiarray", "fromfile"), ("numpy", "memmap"),
        ("subprocess", "Popen"), ("subprocess", "check_output"), ("posix", "system"),
        ("_codecs", "decode"), ("codecs", "encode"), ("copyreg", "__newobj__"), ("pickle", "loads"),
        ("numpy.matrixlib.defmatrix", "matrix"), ("collections", "OrderedDict"), ("", ""),
        ("scipy.sparse.csc", "csc_matrix"), ("handmim.utils.unpickle", "load_pickle"),
        # dotted names lead from an admitted object to any other
        ("numpy", "f2py.os.system"), ("numpy", "ndarray.__class__"),
        ("builtins", "object.__init__"),
        ("builtins", "set.__class__.__base__.__subclasses__"), ("_codecs", "encode.__self__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
    ],
)  # fmt: skip
def test_other_names_are_refused_by_name(read, module, name):
    for bad in (calls(module, name, "x")["STACK_GLOBAL"], calls(module, name, "x")["REDUCE"]):
        with pytest.raises(UnsafePickleError, match="names ") as caught:
            read(bad)
        assert f"names {module}.{name}: refused" in str(caught.value)


def test_a_name_is_refused_even_when_nobody_calls_it(read):
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        read(b"cos\nsystem\n.")
    with pytest.raises(UnsafePickleError, match=r"os\.system"):
        read(b"cos\nsystem\n0N.")


def test_objects_by_number_are_refused(read):
    copyreg.add_extension("os", "system", 240)
    try:
        for code in (b"\x82\xf0", b"\x83\xf0\x00", b"\x84\xf0\x00\x00\x00"):
            with pytest.raises(ValueError, match="damaged or not a pickle"):
                read(b"\x80\x02" + code + b"(S'x'\ntR.")
    finally:
        copyreg.remove_extension("os", "system", 240)
    for bad in (b"Pos.system\n.", b"\x80\x01U\x09os.systemQ."):
        with pytest.raises(ValueError, match="damaged or not a pickle"):
            read(bad)


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE_F8 = b"cnumpy\ndtype\n(S'f8'\nI0\nI0\ntR"


def an_array(state: bytes) -> bytes:
    return RECONSTRUCT + b"(cnumpy\nndarray\n(I0\ntS'b'\ntR" + state + b"b."


@pytest.mark.parametrize(
    "bad",
    [
        b"ccopy_reg\n_reconstructor\n(c__builtin__\nset\nc__builtin__\nobject\nNtR.",
        b"ccopyreg\n_reconstructor\n(cnumpy\ndtype\nc__builtin__\nset\nNtR.",
        b"ccopyreg\n_reconstructor\n(c_codecs\nencode\nc__builtin__\nobject\nNtR.",
        RECONSTRUCT + b"(c__builtin__\nset\n(I0\ntS'b'\ntR.",
        RECONSTRUCT + b"(c__builtin__\nobject\n(I0\ntS'b'\ntR.",
        RECONSTRUCT + b"}S'_function'\nNsb.",  # alter an admitted function
        RECONSTRUCT + b"(N}S'_function'\nc__builtin__\nset\nstb.",
        b"c__builtin__\nset\n(N}S'pop'\nNstb.",
        b"c_codecs\nencode\n(S'aGk='\nS'base64'\ntR.",
        b"c__builtin__\nbytearray\n(S'x'\nS'rot13'\ntR.",
        b"cnumpy\nndarray\n}S'__new__'\nNsb.",  # alter a stand-in class
    ],
)
def test_admitted_names_cannot_be_misused(read, bad):
    with pytest.raises(UnsafePickleError, match="refused"):
        read(bad)
    assert read(np.ones(2)).tolist() == [1, 1]  # and are none the worse for it


@pytest.mark.parametrize(
    "bad",
    [
        b"c__builtin__\nobject\n)\x81}S'x'\nNsb.",
        b"c__builtin__\nbytes\n(I1000000000000\ntR.",  # would reserve a terabyte
        b"c__builtin__\nbytearray\n(I1000000000000\ntR.",
        b"Nr\xff\xff\xff\xff.",  # place 2^32 - 1 of the memo would reserve 64 GB
        b"Np4000000000\n.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"x.",
        b"T\xff\xff\xff\x7fx.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        an_array(b"(I1\n(I1000000000000\nt" + DTYPE_F8 + b"I00\nS'x'\nt"),
        an_array(b"(I1\n(I-1\nt" + DTYPE_F8 + b"I00\nS'x'\nt"),
        an_array(b"(I1\n(I1\nI1000000000000\nI0\nt" + DTYPE_F8 + b"I00\nS'x'\nt"),
        an_array(b"(I1\n(I2\nt" + DTYPE_F8 + b"I00\nS'12345678'\nt"),  # content of one
        an_array(b"(I1\n(I2\ntS'f8'\nI00\nS'12345678'\nt"),  # a dtype that is none
        an_array(b"(I1\n(I0\nt" + b"cnumpy\ndtype\n(S'S0'\nI0\nI1\ntR" + b"I00\nS''\nt"),
        an_array(b"(I1\n(I1\nt" + b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR" + b"I00\nS'12345678'\nt"),
        an_array(b"N"),
        RECONSTRUCT + b"(cnumpy\nndarray\n(I0\ntS'b'\ntR.",  # never filled
        b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
    ],
)  # fmt: skip
def test_impossible_contents_are_refused_at_once(read, bad):
    with pytest.raises(ValueError, match=r"some\.pkl is damaged or not a pickle"):
        read(bad)


# Few bytes that refer to one object again and again. Memo: 0 the object, 1 the function.
TEXT = b"X" + struct.pack("<I", 100_000) + b"7" * 100_000
CALLS = b"q\x010](" + b"h\x01h\x00R" * 300 + b"e."
KEYS = b"q\x000}" + b"h\x00Ns" * 300 + b"."
BYTE_ARRAY = (
    b"(I1\n(I100000\nt" + DTYPE_F8.replace(b"f8", b"u1") + b"I00\n" + TEXT + b"tq\x000"
    b"(cnumpy\nndarray\n(I0\ntS'b'\ntq\x020" + RECONSTRUCT
)  # fmt: skip
ONES = b"](" + b"K\x01" * 10_000 + b"e"
BOMBS = {
    "bytes of text": TEXT + b"\x85q\x000c_codecs\nencode\n" + CALLS,
    "bytearrays of text": TEXT + b"S'latin1'\n\x86q\x000c__builtin__\nbytearray\n" + CALLS,
    "bytearrays of bytes": b"B" + TEXT[1:] + b"\x85q\x000cbuiltins\nbytearray\n" + CALLS,
    "arrays": BYTE_ARRAY + b"q\x010](" + b"h\x01h\x02Rh\x00b" * 300 + b"e.",
    "scalars": b"cnumpy\ndtype\n(S'S100000'\nI0\nI1\ntR" + TEXT
    + b"\x86q\x000cnumpy.core.multiarray\nscalar\n" + CALLS,
    "sets": ONES + b"\x85q\x000c__builtin__\nset\n" + CALLS,
    "frozensets": ONES + b"\x85q\x000cbuiltins\nfrozenset\n" + CALLS,
    "long tuples as keys": b"(" + b"N" * 10_000 + b"t" + KEYS,
    "long numbers as keys": b"\x8b" + struct.pack("<I", 100_000) + b"\x01" * 100_000 + KEYS,
    "long texts as keys": TEXT + KEYS,
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_content_is_in_proportion_to_the_file(read, kind):
    size = len(BOMBS[kind])
    limit = 8 * size + 16_000_000
    with pytest.raises(UnsafePickleError, match=f"more than {limit} bytes of content in .* {size}"):
        read(BOMBS[kind])
    few = BOMBS[kind].replace(b"h\x01h\x00R" * 300, b"h\x01h\x00R" * 3)
    few = few.replace(b"h\x00Ns" * 300, b"h\x00Ns" * 3)
    few = few.replace(b"h\x01h\x02Rh\x00b" * 300, b"h\x01h\x02Rh\x00b" * 3)
    assert len(read(few)) == (1 if "keys" in kind else 3)


def test_arrays_beside_a_long_memo_are_bounded(read):
    """No array is sought among all notes."""
    notes = b"N" + b"".join(b"r" + struct.pack("<I", 10 + i) for i in range(100_000)) + b"0"
    state = b"(I1\n(I1\nt" + DTYPE_F8 + b"I00\nS'12345678'\ntq\x030"
    made = RECONSTRUCT + b"q\x010" + b"(cnumpy\nndarray\n(I0\ntS'b'\ntq\x020"
    each = b"h\x01h\x02Rh\x03b"
    start = time.process_time()
    many = read(b"\x80\x02" + state + made + notes + b"](" + each * 1000 + b"e.")
    assert time.process_time() - start < 3.0
    assert [len(array) for array in many] == [1] * 1000


def tower(height: int, end: bytes, pair: bytes = b"q%ch%c\x86") -> bytes:
    """A pair of twice a pair of twice ...: 2 ** height leaves."""
    return b"\x80\x02K\x01" + b"".join(pair % (i, i) for i in range(height)) + end


def test_what_unfolds_without_end_is_refused(read):
    """It is small as it stands, and gigabytes or hours to who hashes, prints or converts it."""
    assert read(tower(3, b".")) == (((1, 1), (1, 1)), ((1, 1), (1, 1)))
    with pytest.raises(UnsafePickleError, match=r"more than \d+ bytes of content"):
        read(tower(22, b"."))
    lists = b"\x80\x02K\x01" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(22)) + b"."
    with pytest.raises(UnsafePickleError, match=r"more than \d+ bytes of content"):
        read(lists)
    with pytest.raises(UnsafePickleError, match="tries to encode by tuple"):  # it is not printed
        read(tower(16, b"q\x800c_codecs\nencode\nS'x'\nh\x80\x86R."))


@pytest.mark.parametrize(
    "use",
    [
        b"q\x050}h\x05Ns.",
        b"q\x050}(h\x05Nu.",
        b"q\x050(h\x05Nd.",
        b"q\x050\x8f(h\x05\x90.",
        b"q\x050(h\x05\x91.",
        b"q\x050c__builtin__\nset\n]h\x05a\x85R.",
        b"q\x050cbuiltins\nfrozenset\n]h\x05a\x85R.",
    ],
)
def test_keys_are_plain_values_and_flat_tuples_of_them(read, use):
    for height in (2, 18):
        with pytest.raises(UnsafePickleError, match="uses a tuple inside a tuple as a key"):
            read(tower(height, use))
    assert len(read(tower(1, use))) == 1
    assert len(read(tower(0, use))) == 1
    with pytest.raises(UnsafePickleError, match="uses a list as a key"):
        read(b"]" + use)
    with pytest.raises(UnsafePickleError, match="uses a frozenset as a key"):
        read(b"(\x91" + use)


def test_plain_keys_of_all_kinds_are_kept(read):
    keys = ["a", b"b", 1, 2.5, 1j, True, None, ("a", b"b", 1, None), (), np.int64(7), np.str_("c")]
    for protocol in (0, 2, 5):
        assert read(dict.fromkeys(keys, 0), protocol) == dict.fromkeys(keys, 0)
        assert read(set(keys), protocol) == set(keys)


def test_deep_and_wide_nonsense_is_damage(read):
    wide = b"cnumpy\ndtype\n(S'f8'\n" + b"N" * 10_000 + b"tR."
    shape = b"(I1\n(" + b"I4611686018427387904\n" * 2_000 + b"t" + DTYPE_F8 + b"I00\nS''\nt"
    three, texts = b"(K\x01K\x02K\x03tR.", b"(S'1'\nS'2'\ntR."
    numbers = [b"c__builtin__\ncomplex\n" + arguments for arguments in (three, texts)]
    for bad in (wide, an_array(shape), *numbers):
        with pytest.raises(ValueError, match="damaged"):
            read(bad)
    for bad in (b"\x80\x05\x97.", b"N\x98.", b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x\x98."):
        with pytest.raises(ValueError, match="damaged"):
            read(bad)


def test_types_with_fields_are_refused_and_numpys_own_types_stay_what_they_are(read):
    with pytest.raises(ValueError, match="'V12' are not read"):
        read(np.zeros(2, dtype=[("a", "i4"), ("b", "f8")]))
    with pytest.raises(ValueError, match="'M8' are not read"):
        read(np.array(["2020-01-01"], "M8[D]"))
    state = b"(I3\nS'>'\nNNNI-1\nI-1\nI0\ntb."
    assert read(DTYPE_F8 + state) == np.dtype(">f8")
    assert np.dtype("f8").isnative  # numpy would have changed the byte order of every double
    fields = b"(I3\nS'<'\nN(S'a'\nt}S'a'\n(" + DTYPE_F8 + b"I99999\ntsI8\nI1\nI0\ntb."
    with pytest.raises(ValueError, match="with fields"):
        read(DTYPE_F8 + fields)


def test_classes_can_be_admitted_by_name_and_stay_inert(read):
    class Thing(Record):
        pass

    allowed = {("far.away", "Thing"): Thing}
    for made in (
        b"\x80\x02cfar.away\nThing\n)\x81",
        b"(ifar.away\nThing\n",
        b"ccopy_reg\n_reconstructor\n(cfar.away\nThing\nc__builtin__\nobject\nNtR",
    ):
        state = b"}S'x'\n" + an_array(b"(I1\n(I1\nt" + DTYPE_F8 + b"I00\nS'12345678'\nt")[:-1]
        got = read(made + state + b"sb.", allowed=allowed)
        assert type(got) is Thing
        assert got.args == ()
        assert got.state["x"].shape == (1,)
        with pytest.raises(UnsafePickleError, match=r"far\.away\.Thing"):
            read(made + b".")
    with pytest.raises(UnsafePickleError, match=r"far\.away\.Thing\.__init__"):
        read(b"\x80\x04" + text("far.away") + text("Thing.__init__") + b"\x93.", allowed=allowed)
    with pytest.raises(UnsafePickleError, match="tries to alter"):  # the class itself
        read(b"cfar.away\nThing\n(N}S'__setstate__'\nc__builtin__\nset\nstb.", allowed=allowed)
    assert not hasattr(Record(), "x")
    assert read(b"\x80\x02cfar.away\nThing\nK\x05\x85\x81.", allowed=allowed).args == (5,)


@pytest.mark.parametrize("protocol", [0, 2])
def test_every_cut_of_what_python_2_wrote_is_named_a_damaged_file(tmp_path, protocol):
    dump({"a": np.arange(4.0), "b": ["x", (1, 2, 3, 4)], "c": {"d"}}, tmp_path / "w", protocol)
    whole = (tmp_path / "w").read_bytes()
    for length in range(len(whole)):
        (tmp_path / "cut.pkl").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl is damaged or not a pickle"):
            load_pickle(tmp_path / "cut.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_every_cut_is_named_a_damaged_file(tmp_path, protocol):
    whole = pickle.dumps({"a": np.arange(4.0), "b": ["x", (1, 2, 3, 4)], "c": {1}}, protocol)
    path = tmp_path / "cut.pkl"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.pkl is damaged or not a pickle"):
            load_pickle(path)
    path.write_bytes(whole)
    assert load_pickle(path)["a"].sum() == 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of escapes in damaged text
def test_damaged_bytes_give_data_or_a_value_error(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "noise.pkl"
    outcomes = {True: 0, False: 0}
    for protocol in (0, 2, 4, 5):
        whole = pickle.dumps({"a": np.arange(4.0), "b": ["x", (1, 2)], "c": {1}}, protocol)
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 1, 2, 5])):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            path.write_bytes(damaged)
            try:
                load_pickle(path)
                outcomes[True] += 1
            except ValueError:
                outcomes[False] += 1
    assert min(outcomes.values()) > 50


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hello world", b"\x89PNG\r\n\x1a\n" + bytes(20), b"PK\x03\x04", b"{}"]
)
def test_other_files_are_refused(read, content):
    with pytest.raises(ValueError, match=r"some\.pkl.*(damaged|refused)"):
        read(content)


NESTED = {
    "marks": b"(" * 2_000_000,
    "lists that are closed": b"(" * 1_000_000 + b"l" * 1_000_000 + b".",
    "tuples": b"N" + b"\x85" * 2_000_000 + b".",
    "empty lists": b"(" + b"]" * 2_000_000 + b"l.",
}


@pytest.mark.parametrize("kind", NESTED)
def test_instructions_without_end_are_refused_after_a_million(read, kind):
    with pytest.raises(UnsafePickleError, match="has more than 1000000 instructions"):
        read(b"\x80\x02" + NESTED[kind])


def test_keys_of_equal_hash_are_few(read):
    """A dict of n integers that are multiples of 2^61 - 1 would take n^2 steps."""

    def keys(num: int) -> bytes:
        each = (((2**61 - 1) * k << 4).to_bytes(12, "little") for k in range(1, num + 1))
        return b"\x80\x02}(" + b"".join(b"\x8a\x0c" + key + b"N" for key in each) + b"u."

    assert len(read(keys(100))) == 100
    with pytest.raises(UnsafePickleError, match="more than 10000 keys that are neither text nor"):
        read(keys(60_000))


def test_folders_and_pipes_are_no_pickles(tmp_path):
    os.mkfifo(tmp_path / "pipe.pkl")
    for path in (tmp_path, tmp_path / "pipe.pkl"):
        with pytest.raises(ValueError, match="is no regular file"):
            load_pickle(path)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "large.pkl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"large\.pkl has 1099511627776 bytes, .* at most"):
        load_pickle(tmp_path / "large.pkl")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pickle(tmp_path / "none.pkl")


def peak_bytes(function, *args) -> int:
    tracemalloc.start()
    try:
        function(*args)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_arguments_of_what_a_checkpoint_names_are_not_kept():
    num = 20_000  # in one tuple, with which a class is called so often
    data = b"\x80\x02cfoo\nBar\nq\x010(" + b"N" * num + b"tq\x020(" + b"h\x01h\x02R" * 500 + b"l."
    assert peak_bytes(check_torch_pickle, data, len(data)) < 10e6


def test_a_list_that_fills_many_arrays_counts_for_each(tmp_path):
    num = 100_000
    data = b"\x80\x02cnumpy.core.numeric\n_frombuffer\nq\x010cnumpy\ndtype\n"
    data += b"(X\x01\x00\x00\x00OK\x00K\x01tRq\x020](" + b"N" * num + b"eq\x030"
    data += b"(h\x03h\x02J" + struct.pack("<i", num) + b"\x85X\x01\x00\x00\x00Ctq\x040"
    data += b"(" + b"h\x01h\x04R" * 500 + b"l."
    path = tmp_path / "x.pkl"
    path.write_bytes(data)

    def refused() -> None:
        with pytest.raises(UnsafePickleError, match="bytes of content"):
            load_pickle(path)

    assert peak_bytes(refused) < 150e6


def test_a_class_is_called_with_few_arguments(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(b"\x80\x02cfoo\nBar\n(" + b"N" * 9 + b"tR.")
    with pytest.raises(UnsafePickleError, match="9 arguments"):
        load_pickle(path, {("foo", "Bar"): Record})
