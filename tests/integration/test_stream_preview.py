"""`gexia stream preview`."""

from make_dataset import make_dataset

import gexia
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


def test_a_dataset_without_summaries_is_shown_by_its_long_texts(tmp_path):
    make_dataset(tmp_path / "data", shorts={"train": 2}, longs={"train": 3}, rows=1, summaries=False)
    page = tmp_path / "made" / "page.html"  # in a folder that is made
    assert gexia.main(["stream", "preview", str(tmp_path / "data"), "--output", str(page)]) == 0
    assert page.read_text().count("<dt>long</dt>") == 3 and "<dt>summary</dt>" not in page.read_text()


def test_a_page_that_cannot_be_written_is_refused_before_the_data_is_read(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["stream", "preview", str(tmp_path / "nothing"), "--output", str(tmp_path / "file" / "page.html")]
    assert gexia.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --output: ") and error.count("\n") == 1
