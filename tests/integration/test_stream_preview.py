"""`gexia stream preview`."""

import gexia
from make_dataset import make_dataset
from shards.reader import iter_shard, open_dataset


def test_the_page_shows_frames_and_texts_of_every_stream(tmp_path, capsys):
    make_dataset(tmp_path / "data", shorts={"train": 6}, longs={"train": 3}, rows=1)
    page = tmp_path / "page.html"
    assert gexia.main(["stream", "preview", str(tmp_path / "data"), "--output", str(page)]) == 0
    assert capsys.readouterr().out.strip() == str(page)
    html, dataset = page.read_text(), open_dataset(str(tmp_path / "data"))
    for granularity, view in (("short", "txt"), ("long", "summary.txt"), ("image", "txt")):
        for shard in dataset.select("train", granularity):
            assert all(members[view].decode() in html for _, members in iter_shard(dataset.shard_url(shard)))
    assert html.count("data:image/jpeg") == 6 * 4 + 3 * 8 + 6
    assert html.count("<span></span>") == 6 * 4 + 3 * 24  # 8 and 32 wanted: the rest is padding
    assert gexia.main(["stream", "preview", str(tmp_path / "nothing")]) == 2
