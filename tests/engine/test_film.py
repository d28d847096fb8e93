"""Films, decoded back: frame count, exact times, colours, sound in step."""

import fractions
from typing import Any

import av
import numpy as np
import pytest

from pixr1_jax.engine import caption as caption_lib
from pixr1_jax.engine import film as film_lib


def _decode(path) -> Any:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = [(frame.pts or 0) * (frame.time_base or 0) for frame in frames]
        pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return pictures, times, None, 0, 0.0
        blocks = list(container.decode(audio=0))
        start = float((blocks[0].pts or 0) * (blocks[0].time_base or 0))
        sound = np.concatenate([block.to_ndarray() for block in blocks], axis=1)
    return pictures, times, sound, blocks[0].sample_rate, start


def _ramp(count, height, width):
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += (20 * np.arange(count, dtype=np.uint8))[:, None, None, None] + 20
    return frames


@pytest.mark.parametrize("rate", [fractions.Fraction(12), fractions.Fraction(35, 4), fractions.Fraction(30000, 1001)])
def test_frames_are_exact_in_number_and_time(tmp_path, rate):
    path = tmp_path / "new" / "film.mp4"
    film_lib.write_film(path, _ramp(11, 30, 41), rate, np.zeros((0, 0), np.float32), 8000)
    pictures, times, sound, *_ = _decode(path)
    assert times == [index / rate for index in range(11)]
    # 30 x 41 is enlarged 12 times: the short side reaches 360.
    assert pictures.shape == (11, 360, 492, 3)
    means = pictures.reshape(11, -1).mean(axis=1)
    np.testing.assert_allclose(means, 20 * np.arange(11) + 20, atol=3)
    assert sound is None
    assert [file.name for file in path.parent.iterdir()] == ["film.mp4"]


def test_colours_and_odd_sizes_survive(tmp_path):
    frame = np.zeros((3, 5, 3), np.uint8)
    frame[:, :2], frame[:, 2:] = (200, 40, 60), (30, 90, 220)
    path = tmp_path / "film.mp4"
    film_lib.write_film(path, [frame] * 3, fractions.Fraction(5), np.zeros((0, 0), np.float32), 8000, scale=15)
    pictures, *_ = _decode(path)
    assert pictures.shape[1:] == (46, 76, 3)
    with av.open(str(path)) as container:
        decoded = next(container.decode(video=0)).reformat(format="rgb24", src_colorspace="ITU709").to_ndarray()
    np.testing.assert_allclose(decoded[20, 10], (200, 40, 60), atol=6)
    np.testing.assert_allclose(decoded[20, 60], (30, 90, 220), atol=6)


@pytest.mark.parametrize(("sample_rate", "channels"), [(6000, 2), (6000, 1), (11025, 2), (48000, 2)])
def test_click_is_in_step(tmp_path, sample_rate, channels):
    rate = fractions.Fraction(5)
    seconds, click = 2.0, 1.2
    sound = np.zeros((int(seconds * sample_rate), channels), np.float32)
    sound[int(click * sample_rate), :] = 0.9
    path = tmp_path / "film.mp4"
    film_lib.write_film(path, _ramp(10, 40, 40), rate, sound, sample_rate)
    _, _, decoded, decoded_rate, start = _decode(path)
    assert decoded is not None and len(decoded) == channels
    for channel in decoded:
        heard = start + np.abs(channel).argmax() / decoded_rate
        assert abs(heard - click) < 0.002
    # The encoder fills up its last block, no more.
    assert seconds - 1e-3 <= start + decoded.shape[1] / decoded_rate < seconds + 0.05


def test_pieces_give_the_same_file_as_the_whole(tmp_path):
    rate, sample_rate = fractions.Fraction(10), 8000
    frames = _ramp(6, 16, 16)
    sound = np.sin(np.arange(4800) * 0.3).astype(np.float32)[:, None]
    film_lib.write_film(tmp_path / "whole.mp4", frames, rate, sound, sample_rate)
    with film_lib.film(tmp_path / "pieces.mp4", rate, channels=1, sample_rate=sample_rate) as writer:
        for index, frame in enumerate(frames):
            writer.write(frame)
            # Sound comes late and in pieces of another length.
            writer.write_sound(sound[max(0, 800 * index - 300) : 800 * index + 500])
        writer.write_sound(sound[4500:])
    whole, pieces = _decode(tmp_path / "whole.mp4"), _decode(tmp_path / "pieces.mp4")
    np.testing.assert_array_equal(whole[0], pieces[0])
    np.testing.assert_allclose(whole[2], pieces[2], atol=1e-3)


def test_caption_strip(tmp_path):
    def light(value):
        strip = caption_lib.draw(caption_lib.Caption((("left", 0.0), ("jump", value)), "night"), 400)
        return np.argwhere((strip == (255, 183, 77)).all(axis=-1))

    assert len(light(0.0)) == 0
    full, half, negative = light(1.0), light(0.5), light(-0.5)
    assert 0.3 * len(full) < len(half) < 0.7 * len(full)
    assert half[:, 1].max() <= negative[:, 1].min() + 1
    assert full[:, 1].min() == half[:, 1].min() and full[:, 1].max() == negative[:, 1].max()

    captions = [caption_lib.Caption((("left", float(index % 2)),), "a prompt", "dream") for index in range(4)]
    path = tmp_path / "film.mp4"
    film_lib.write_film(
        path, _ramp(4, 36, 48), fractions.Fraction(12), np.zeros((0, 0), np.float32), 8000, captions=captions
    )
    pictures, *_ = _decode(path)
    assert pictures.shape[1] > 360 and pictures.shape[2] == 480
    lit = [(picture[360:, :, 0] > 200).sum() for picture in pictures]
    assert lit[1] > lit[0] + 500 and lit[3] > lit[2] + 500


def test_many_keys_wrap_and_long_prompts_are_shortened():
    keys = tuple((f"move_somewhere_{index}", 1.0) for index in range(12))
    strip = caption_lib.draw(caption_lib.Caption(keys, "word " * 200, "note"), 360)
    assert strip.shape[1] == 360 and strip.shape[0] > 120
    # Nothing touches the right edge.
    assert (strip[:, -5:] == strip[0, 0]).all()


def test_errors_leave_no_file(tmp_path):
    path, rate = tmp_path / "film.mp4", fractions.Fraction(12)
    silent = np.zeros((0, 0), np.float32)
    with pytest.raises(ValueError, match="film has no frames"):
        film_lib.write_film(path, [], rate, silent, 8000)
    with pytest.raises(ValueError, match="film frame 1 is"):
        film_lib.write_film(path, [np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], rate, silent, 8000)
    with pytest.raises(ValueError, match="use 0, 1 or 2"):
        film_lib.write_film(path, _ramp(1, 8, 8), rate, np.zeros((10, 3), np.float32), 8000)
    with pytest.raises(ValueError, match="scale is 0"):
        film_lib.write_film(path, _ramp(1, 8, 8), rate, silent, 8000, scale=0)
    assert list(tmp_path.iterdir()) == []
