"""The commands of `jtok`, one file each; every file defines `COMMAND`."""
