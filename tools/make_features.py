"Train the shipped Fashion-MNIST feature network and write it, its description and the reference statistics to data/fashion_mnist_features/."

import argparse
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
from bdense_nb.core import save_tensors, sha256, write_json
from bdense_nb.diffusion.data import fashion_mnist
from bdense_nb.evaluation.metrics import accuracy, feature_stats, image_features, train_feature_net

ROOT = Path(__file__).resolve().parent.parent


def cpu_name() -> str:
    "The processor's model name where the system tells it."
    info = Path('/proc/cpuinfo')
    names = (
        [
            line.split(':', 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith('model name')
        ]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--epochs', type=int, default=10)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--out', type=Path, default=ROOT / 'data' / 'fashion_mnist_features')
    args = p.parse_args()
    images, labels = fashion_mnist('train')
    test_images, test_labels = fashion_mnist('test')
    start = time.perf_counter()
    net = train_feature_net(images, labels, args.epochs, args.seed)
    seconds = time.perf_counter() - start
    save_tensors(
        args.out / 'model.safetensors',
        net.state_dict(),
        {'kind': 'FeatureNet', 'config': net.config},
    )
    stats = feature_stats(image_features(images, net))
    model_hash = sha256(args.out / 'model.safetensors')
    save_tensors(
        args.out / 'reference.safetensors',
        {'mean': stats.mean, 'cov': stats.cov},
        {
            'kind': 'GaussianStats',
            'n': stats.n,
            'images': 'Fashion-MNIST, all training images',
            'model_sha256': model_hash,
        },
    )
    write_json(
        args.out / 'config.json',
        {
            'command': shlex.join(['python', 'tools/make_features.py', *sys.argv[1:]]),
            'net': net.config,
            'epochs': args.epochs,
            'seed': args.seed,
            'parameters': sum(q.numel() for q in net.parameters()),
            'dataset': 'Fashion-MNIST (60,000 training images; 10,000 test images for the accuracy only)',
            'test_accuracy': accuracy(net, test_images, test_labels),
            'train_accuracy': accuracy(net, images, labels),
            'training_seconds': round(seconds, 1),
            'threads': torch.get_num_threads(),
            'hardware': cpu_name(),
            'torch': torch.__version__,
            'python': platform.python_version(),
            'sha256': {
                'model.safetensors': model_hash,
                'reference.safetensors': sha256(args.out / 'reference.safetensors'),
            },
        },
    )
    print((args.out / 'config.json').read_text())


if __name__ == '__main__':
    main()
