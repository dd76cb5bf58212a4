"""tdreplay's own client and one made of the generated code use one table."""

from __future__ import annotations

import torch
from tensordict import TensorDict

from conftest import numbers, rows
from tdreplay_client import RemoteReplayBuffer


def test_tdreplays_client_reads_what_the_stock_client_wrote(client, address):
    client.create(10)
    n = rows(6)
    client.add({"obs": n["obs"], "action": n["action"], "done": n["done"], "next.obs": n["next", "obs"]})
    with RemoteReplayBuffer(address, table=client.table) as buffer:
        assert numbers(buffer.sample_all()) == [0, 1, 2, 3, 4, 5]
        assert numbers(buffer.sample_by_index([5, 1])) == [5, 1]
        assert [numbers(batch) for batch in buffer.create_epoch_iterator(4)] == [[0, 1, 2, 3], [4, 5]]
        assert set(numbers(buffer.sample_batch(100))) == set(range(6))


def test_the_stock_client_reads_what_tdreplays_client_wrote(client, address):
    sent = rows(6)
    with RemoteReplayBuffer(address, table=client.table, buffer_size=10) as buffer:
        buffer.add_batch(sent[:5])
        buffer.add(sent[5])
    batch = client.sample_all()
    assert batch.keys() == {"obs", "action", "done", "next.obs", "index", "row_id"}
    assert all(torch.equal(batch[name], sent[name]) for name in ("obs", "action", "done"))
    assert torch.equal(batch["next.obs"], sent["next", "obs"])


def test_both_clients_write_the_same_table(client, address):
    with RemoteReplayBuffer(address, table=client.table, buffer_size=10) as buffer:
        buffer.add_batch(TensorDict({"obs": torch.zeros(2, 2), "next": {"obs": torch.ones(2)}}, [2]))
        assert client.add({"next.obs": torch.ones(3), "obs": torch.zeros(3, 2)}).first_row_id == 2
        buffer.add(TensorDict({"next": {"obs": torch.ones(())}, "obs": torch.zeros(2)}, []))
        assert (buffer.size, client.describe().size) == (6, 6)
        assert buffer.sample_all()["row_id"].tolist() == client.sample_all()["row_id"].tolist() == list(range(6))


def test_rows_that_are_batches_go_from_client_to_client(client, address):
    with RemoteReplayBuffer(address, table=client.table, buffer_size=10) as buffer:
        buffer.add_batch(TensorDict({"obs": torch.arange(30.0).reshape(2, 5, 3)}, [2, 5]))
        client.add({"obs": torch.arange(30.0, 45.0).reshape(1, 5, 3)}, (1, 5))
        batch = buffer.sample_all()
    assert batch.batch_size == torch.Size([3, 5])
    assert torch.equal(batch["obs"], torch.arange(45.0).reshape(3, 5, 3))
    assert torch.equal(client.sample_all()["obs"], batch["obs"])
