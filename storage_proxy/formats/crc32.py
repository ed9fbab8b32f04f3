"""CRC-32 of a whole from the CRC-32s of its parts. The law: equal to `zlib.crc32` of the concatenated content.

Appending n zero bytes to a message multiplies its CRC by x^(8n) modulo P (all bits reflected, P = 0xEDB88320,
APPNOTE 4.4.7), so CRC(A + B) = CRC(A) * x^(8 * len(B)) + CRC(B).
"""

from functools import cache

_POLYNOMIAL = 0xEDB88320
_X_TO_THE_0 = 0x80000000  # reflected: the highest bit is the coefficient of x^0
_X_TO_THE_1 = 0x40000000

_ByteTables = tuple[tuple[int, ...], ...]


def combine(crc_a: int, crc_b: int, length_b: int) -> int:
    """The CRC-32 of A followed by B, where B has ``length_b`` bytes. About 1 us for each 1 bit of the length.

    Raises ValueError when ``length_b`` is negative.
    """
    if length_b < 0:
        raise ValueError(f"a length is not negative: {length_b}")
    power = 3  # 8 bits a byte: x^8 = x^(2^3)
    while length_b:
        if length_b & 1:
            # x^(2^32) = x modulo P, so the powers repeat after 32 squarings
            t0, t1, t2, t3 = _times_x_to_the_2_to_the(power & 31)
            crc_a = t0[crc_a & 255] ^ t1[crc_a >> 8 & 255] ^ t2[crc_a >> 16 & 255] ^ t3[crc_a >> 24 & 255]
        length_b >>= 1
        power += 1
    return crc_a ^ crc_b


def _multiply(a: int, b: int) -> int:
    """a * b modulo P, as polynomials over GF(2), reflected."""
    product = 0
    bit = _X_TO_THE_0
    while bit:
        if a & bit:
            product ^= b
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
        bit >>= 1
    return product


@cache
def _x_to_the_2_to_the(power: int) -> int:
    if power == 0:
        return _X_TO_THE_1
    root = _x_to_the_2_to_the(power - 1)
    return _multiply(root, root)


@cache
def _times_x_to_the_2_to_the(power: int) -> _ByteTables:
    """What each byte of a CRC becomes when multiplied: four look-ups instead of 32 shifts. 40 KiB a power."""
    products = [_multiply(1 << bit, _x_to_the_2_to_the(power)) for bit in range(32)]
    tables = []
    for byte in range(4):
        table = [0]
        for product in products[8 * byte : 8 * byte + 8]:
            table += [product ^ lower for lower in table]  # doubles: the bytes that have this bit too
        tables.append(tuple(table))
    return tuple(tables)
