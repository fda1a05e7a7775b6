"""Command line and launchers. Nothing imports this package."""

from launch.own_packages import prefer_own_packages

prefer_own_packages()  # before any module of launch imports one of them
