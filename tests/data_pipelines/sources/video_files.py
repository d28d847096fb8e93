"""Makes small video files for the tests of the video folder."""

import fractions

import av
import numpy as np

RATE = 48000


def picture(height: int, width: int, value: int) -> np.ndarray:
    """A picture of one brightness."""
    return np.full((height, width, 3), value, np.uint8)


def scene(height: int, width: int, seed: int, shift: int = 0) -> np.ndarray:
    """A smooth picture of its own, moved to the right."""
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256, (3, 4, 3)).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(low, format="rgb24").reformat(width, height, "rgb24", interpolation="BICUBIC")
    return np.roll(frame.to_ndarray(), shift, axis=1)


def moving(frames: int, height: int = 48, width: int = 64, seed: int = 0) -> list[np.ndarray]:
    """A picture that moves."""
    return [scene(height, width, seed, shift) for shift in range(frames)]


def write(
    path,
    frames,
    *,
    codec="libx264",
    pixels="yuv420p",
    rate=25,
    ticks=None,
    base=None,
    audio=None,
    audio_codec="aac",
    audio_rate=RATE,
    layout="stereo",
    audio_start=0,
    format=None,
    options=None,
    gop=None,
    rotation=None,
    flip=False,
    container_options=None,
    aspect=None,
):
    """Writes a file. `ticks` are times in `base` (else frame numbers); `audio` is int16 `[samples, channels]`."""
    rate = fractions.Fraction(rate)
    base = base or 1 / rate
    with av.open(str(path), "w", format=format, container_options=container_options or {}) as container:
        height, width = frames[0].shape[:2]
        extra = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        stream = container.add_stream(codec, rate=rate, options={**extra, **(options or {})})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = width, height, pixels, base
        stream.codec_context.time_base = base
        if gop:
            stream.codec_context.gop_size = gop
        if aspect:
            stream.sample_aspect_ratio = aspect
        if rotation is not None or flip:
            stream.set_display_rotation(rotation or 0, flip)
        sound = None
        if audio is not None:
            sound = container.add_stream(audio_codec, rate=audio_rate, layout=layout)
        # Sound and pictures in turn, as recorders do.
        packets = []
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = (number if ticks is None else ticks[number]), base
            packets += stream.encode(frame)
        packets += stream.encode()
        if sound is not None:
            for frame in _sound_frames(audio, audio_rate, layout, sound, audio_start):
                packets += sound.encode(frame)
            packets += sound.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def _sound_frames(audio, rate, layout, sound, start):
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio).reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, fractions.Fraction(1, rate), 0
    context = sound.codec_context
    size = context.frame_size or 1024
    resampler = av.AudioResampler(format=context.format, layout=layout, rate=rate, frame_size=size)
    position = round(start * rate)
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        part.pts, part.time_base = position, fractions.Fraction(1, rate)
        position += part.samples
        yield part


def tone(seconds, *, rate=RATE, channels=2, frequency=440, gain=8000) -> np.ndarray:
    """A sine, int16 `[samples, channels]`."""
    wave = np.sin(np.arange(round(seconds * rate)) * 2 * np.pi * frequency / rate) * gain
    return np.repeat(wave.astype(np.int16)[:, None], channels, axis=1)


def straight(path):
    """All frames by the plainest decoding: times in seconds, and RGB pictures as the pipeline sees them."""
    from data_pipelines.video import to_rgb

    times, images = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            times.append(frame.pts * frame.time_base)
            images.append(to_rgb(frame))
    return times, np.stack(images)
