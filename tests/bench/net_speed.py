"Training images a second of the Fashion-MNIST network: memory layout and precision. Run on a quiet machine: `python tests/bench/net_speed.py`; --out FILE writes the table as JSON."
import argparse
import shlex
import sys
import time

import torch
from bdense_nb.core import about_run, default_device, write_json
from bdense_nb.diffusion.denoisers import EDMDenoiser
from bdense_nb.diffusion.nets import UNet
from bdense_nb.distillation.teaching import edm_loss


def images_per_second(channels_last: bool, bf16: bool, batch: int, seconds: float, device: torch.device) -> float:
    "Best of the rates of single training steps, after one step of warm-up."
    torch.manual_seed(0)
    denoiser = EDMDenoiser(UNet(n_classes=10)).to(device)
    if channels_last: denoiser.to(memory_format=torch.channels_last)
    opt = torch.optim.Adam(denoiser.parameters(), lr=1e-4)
    images, labels = torch.randn(batch, 1, 28, 28, device=device), torch.randint(10, (batch,), device=device)
    times, end = [], None
    while end is None or time.monotonic() < end:
        begin = time.monotonic()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16): loss = edm_loss(denoiser, images, labels, label_drop=0.)
        opt.zero_grad(); loss.backward(); opt.step()
        if device.type == 'cuda': torch.cuda.synchronize()
        if end is None: end = time.monotonic() + seconds
        else: times.append(time.monotonic() - begin)
    return batch/min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--seconds', type=float, default=10., help='for each of the four settings')
    parser.add_argument('--out', help='a JSON file for the figures')
    args = parser.parse_args()
    about = dict(batch=args.batch, capability=torch.backends.cpu.get_cpu_capability(), **about_run())
    print(about)
    rates = {}
    for bf16 in (False, True):
        for channels_last in (False, True):
            name = f'{"bf16 autocast" if bf16 else "fp32"}, {"channels-last" if channels_last else "contiguous"}'
            rates[name] = images_per_second(channels_last, bf16, args.batch, args.seconds, default_device())
            print(f'{name:30} {rates[name]:8.0f} images/s', flush=True)
    if args.out: write_json(args.out, dict(command=shlex.join(['python', 'tests/bench/net_speed.py', *sys.argv[1:]]), images_per_second=rates, **about))


if __name__ == '__main__': main()
