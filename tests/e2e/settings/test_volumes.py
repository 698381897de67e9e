"""Volumes that are small."""

import subprocess


def test_a_file_that_does_not_fit_is_refused_in_words_however_long_it_is(house_with, tmp_path):
    house = house_with("[volumes]\nsize_mib = 16\n")

    def atoll(*arguments, **options):
        return subprocess.run([house.program, *arguments], env=house.env, capture_output=True, text=True, timeout=120, **options)

    assert atoll("volume", "create", "small").returncode == 0
    for mib in (17, 256):
        (tmp_path / "file").write_bytes(bytes(mib << 20))
        refused = atoll("volume", "cp", str(tmp_path / "file"), "small:/file")
        assert refused.returncode != 0
        assert "no space" in refused.stderr.lower(), refused.stderr
        assert "pipe" not in refused.stderr.lower(), refused.stderr
    assert "file" not in atoll("volume", "ls", "small").stdout
    assert atoll("volume", "delete", "small").returncode == 0
