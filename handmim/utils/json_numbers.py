"""Numbers of JSON text as float64 and back, compiled; each is what `float` would read.

A decimal fraction w 10^q is w (5^q) 2^q. Where w and 10^|q| are both exact in float64, so is their
one product or quotient. Otherwise w is multiplied by the leading 64 bits of 5^q in integers, and
the leading 53 bits of the product are the answer wherever the bits that were cut off cannot change
its rounding (Clinger 1990; Lemire 2021, arXiv 2101.11408). The few others are left to `float`.
"""

import numpy as np
from numpy.typing import NDArray

from handmim.utils.kernels import njit

LOWEST, HIGHEST = -60, 20  # powers of ten in the table


def _leading_bits(power: int) -> tuple[int, int]:
    """The leading 64 bits of 5^power, cut off, and what power of 2 they are to be multiplied by."""
    if power >= 0:
        shift = (5**power).bit_length() - 64
        return (5**power << -shift if shift < 0 else 5**power >> shift), shift
    shift = (5**-power).bit_length() + 63
    bits = (1 << shift) // 5**-power
    longer = bits.bit_length() - 64
    return bits >> longer, longer - shift


_TABLE = [_leading_bits(power) for power in range(LOWEST, HIGHEST + 1)]
_FIVES = np.array([bits for bits, _ in _TABLE], np.uint64)
_SHIFTS = np.array([shift for _, shift in _TABLE], np.int64)
_TENS = 10.0 ** np.arange(23)

_LOW32, _U1, _U11, _U32, _U63 = (np.uint64(n) for n in (0xFFFFFFFF, 1, 11, 32, 63))
_EXACT = np.uint64(2**53)


@njit(cache=True, nogil=True)
def _product(a, b):  # type: ignore[no-untyped-def]
    """Upper and lower 64 bits of a product of two uint64."""
    a0, a1, b0, b1 = a & _LOW32, a >> _U32, b & _LOW32, b >> _U32
    low, mid1, mid2, high = a0 * b0, a1 * b0, a0 * b1, a1 * b1
    carry = ((low >> _U32) + (mid1 & _LOW32) + (mid2 & _LOW32)) >> _U32
    return high + (mid1 >> _U32) + (mid2 >> _U32) + carry, a * b


@njit(cache=True, nogil=True)
def _nearest(w, q, fives, shifts, tens):  # type: ignore[no-untyped-def]
    """The float64 nearest to w 10^q, w >= 0 a uint64; -1 where this way cannot tell."""
    if w == 0:
        return 0.0
    if w <= _EXACT and -22 <= q <= 22:
        return w / tens[-q] if q < 0 else w * tens[q]
    if not LOWEST <= q <= HIGHEST:
        return -1.0
    zeros = 0
    while not w >> _U63:
        w <<= _U1
        zeros += 1
    high, low = _product(w, fives[q - LOWEST])
    power = shifts[q - LOWEST] + q - zeros + 64
    cut = _U11 if high >> _U63 else _U11 - _U1
    half = _U1 << (cut - _U1)
    rest = high & ((half << _U1) - _U1)
    if rest == half - _U1 or (rest == half and low == 0):
        return -1.0
    bits = (high >> cut) + (_U1 if rest >= half else np.uint64(0))
    return np.ldexp(np.float64(bits), np.int32(power + np.int64(cut)))


@njit(cache=True, nogil=True)
def _skip_zeros(text, at):  # type: ignore[no-untyped-def]
    while at < text.shape[0] and text[at] == 48:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _digits(text, at, w):  # type: ignore[no-untyped-def]
    while at < text.shape[0] and 48 <= text[at] <= 57:
        w = w * np.uint64(10) + np.uint64(text[at] - 48)
        at += 1
    return w, at


@njit(cache=True, nogil=True)
def _read(text, out, doubts, fives, shifts, tens):  # type: ignore[no-untyped-def]
    """Numbers with one comma between any two; brackets and white space are passed over.

    Args:
        text: [n] uint8.
        out: float64 out.
        doubts: [k, 3] out, place in `out` and start and end in `text` of numbers left to `float`.
    Returns: how many numbers and how many doubts; -1 where something else stands, or does not fit.
    """
    at, end, count, num_doubts = 0, text.shape[0], 0, 0
    is_first = True
    while True:
        commas = 0
        while at < end and text[at] in (32, 9, 10, 13, 91, 93, 44):
            commas += text[at] == 44
            at += 1
        if at == end:
            return (count, num_doubts) if commas == 0 else (-1, 0)
        if commas != (not is_first) or count == len(out):
            return -1, 0
        is_first = False
        start = at
        is_negative = text[at] == 45
        at += is_negative
        first, q = at, 0
        at = _skip_zeros(text, at)
        digits = at
        w, at = _digits(text, at, np.uint64(0))
        digits = at - digits
        if at < end and text[at] == 46:
            point, first = at + 1, first + 1
            at = point if w else _skip_zeros(text, point)
            digits -= at
            w, at = _digits(text, at, w)
            digits += at
            q = point - at
        if at == first:
            return -1, 0
        if at < end and (text[at] == 101 or text[at] == 69):
            at += 1
            is_small = at < end and text[at] == 45
            at += at < end and (text[at] == 45 or text[at] == 43)
            exponent, first_digit = 0, at
            while at < end and 48 <= text[at] <= 57 and exponent < 10000:
                exponent = 10 * exponent + text[at] - 48
                at += 1
            if at == first_digit:
                return -1, 0
            q += -exponent if is_small else exponent
        if at < end and text[at] not in (32, 9, 10, 13, 93, 44):
            return -1, 0
        value = _nearest(w, q, fives, shifts, tens) if digits <= 19 else -1.0
        if value < 0:
            if num_doubts == len(doubts):
                return -1, 0
            doubts[num_doubts, 0] = count
            doubts[num_doubts, 1] = start
            doubts[num_doubts, 2] = at
            num_doubts += 1
        out[count] = -value if is_negative else value
        count += 1


def parse_numbers(text: bytes) -> NDArray[np.float64]:
    """Numbers of a JSON list, nested or not: which bracket stands where is not looked at.

    Args:
        text: numbers with a comma between any two; NaN and Infinity are numbers here.
    Returns: [n].
    Raises: ValueError where something else stands.
    """
    out = np.empty(text.count(b",") + 1)
    doubts = np.empty((len(out) // 16 + 16, 3), np.int64)
    codes = np.frombuffer(text, np.uint8)
    count, num_doubts = _read(codes, out, doubts, _FIVES, _SHIFTS, _TENS)
    if count < 0:
        return _slowly(text)
    for place, start, end in doubts[:num_doubts]:
        out[place] = float(text[start:end])
    return out[:count]


def _slowly(text: bytes) -> NDArray[np.float64]:
    """The same word by word: NaN and Infinity, and what is no list of numbers."""
    words = text.translate(bytes.maketrans(b"[]", b"  ")).split(b",")
    if b"_" in text:  # Python's own way to write numbers
        raise ValueError("a number holds an underscore")
    return np.array([float(word) for word in words])


DECIMALS = 7
_UNIT = 10**DECIMALS
# A sign, nine digits before the point, the point, the decimals, and what stands between numbers.
_LONGEST = 22
_LARGEST = 9e8  # times the unit it is exact in float64


@njit(cache=True, nogil=True)
def _write(rows, text):  # type: ignore[no-untyped-def]
    """[n, k] numbers below `_LARGEST` as lists of k in a list; returns the length."""
    at = 0
    for i in range(rows.shape[0]):
        text[at] = 44 if i else 91
        text[at + 1] = 91
        at += 2
        for k in range(rows.shape[1]):
            scaled = np.int64(np.rint(abs(rows[i, k]) * _UNIT))
            if rows[i, k] < 0 and scaled:
                text[at] = 45
                at += 1
            whole, width = scaled // _UNIT, 1
            power = 10
            while power <= whole:
                power *= 10
                width += 1
            rest = scaled % _UNIT
            for place in range(at + width + DECIMALS, at + width, -1):
                text[place] = 48 + rest % 10
                rest //= 10
            text[at + width] = 46
            for place in range(at + width - 1, at - 1, -1):
                text[place] = 48 + whole % 10
                whole //= 10
            at += width + DECIMALS + 1
            text[at] = 44
            at += 1
        text[at - 1] = 93
    text[at] = 93
    return at + 1


def rows_text(rows: NDArray[np.floating]) -> bytes:
    """A list of lists of numbers with seven decimals, without white space.

    Args:
        rows: [n, k] finite, n and k >= 1.
    """
    if np.abs(rows).max() >= _LARGEST:
        form = "[" + ",".join([f"%.{DECIMALS}f"] * rows.shape[1]) + "]"
        return ("[" + ",".join(form % tuple(row) for row in rows.tolist()) + "]").encode()
    text = np.empty((rows.size + 1) * _LONGEST, np.uint8)
    return text[: _write(np.ascontiguousarray(rows, np.float64), text)].tobytes()
