"""What a transaction does, as a list of operations: on a plain dict, and on a store."""

from typing import Any

from storage_proxy.state.port import Row, Transaction

Operation = tuple[Any, ...]
"""``get key snapshot``, ``range begin end limit reverse snapshot``, ``batches begin end reverse snapshot``,
``set key value``, ``clear key``, ``clear_range bound bound`` (in either order)."""


class Model:
    """What a transaction is: the rows, in a dict."""

    def __init__(self, rows: dict[bytes, bytes]) -> None:
        self.rows = dict(rows)

    def run(self, operation: Operation) -> object:
        kind, *arguments = operation
        if kind == "get":
            return self.rows.get(arguments[0])
        if kind == "range":
            begin, end, limit, reverse, _ = arguments
            return self.between(begin, end, reverse)[:limit]
        if kind == "batches":
            begin, end, reverse, _ = arguments
            return self.between(begin, end, reverse)
        if kind == "set":
            self.rows[arguments[0]] = arguments[1]
        elif kind == "clear":
            self.rows.pop(arguments[0], None)
        else:
            for key, _ in self.between(*sorted(arguments)):
                del self.rows[key]
        return None

    def between(self, begin: bytes, end: bytes, reverse: bool = False) -> list[Row]:
        return sorted(((k, v) for k, v in self.rows.items() if begin <= k < end), reverse=reverse)


async def run_on(transaction: Transaction, operation: Operation) -> object:
    kind, *arguments = operation
    if kind == "get":
        return await transaction.get(arguments[0], snapshot=arguments[1])
    if kind == "range":
        begin, end, limit, reverse, snapshot = arguments
        return list(await transaction.get_range(begin, end, limit=limit, reverse=reverse, snapshot=snapshot))
    if kind == "batches":
        begin, end, reverse, snapshot = arguments
        batches = transaction.get_batches(begin, end, reverse=reverse, snapshot=snapshot)
        return [row async for batch in batches for row in batch]
    if kind == "set":
        transaction.set(*arguments)
    elif kind == "clear":
        transaction.clear(*arguments)
    else:
        transaction.clear_range(*sorted(arguments))
    return None
