"""Random trees of everything that a file system holds, and an independent look at them.

  tree.py make FOLDER SEED COUNT [--tenant]   makes COUNT trees, of the seeds SEED, SEED + 1, ...; each in a
                                              folder of its own. --tenant: only what uid 1000 could have made.
  tree.py walk FOLDER                         one line of JSON for each inode, by the bytes of its path
  tree.py blocks FOLDER                       what all of it takes of the disk, in blocks of 512 bytes

It shares nothing with the program that it tests: another language, other system calls where there are any.
Every path is walked by open folders, since many are longer than a system call takes.
"""

import fcntl
import hashlib
import json
import os
import random
import socket
import stat
import sys

BLOCK = 4096
TENANT = 1000
# ioctl_iflags(2), on machines with words of 64 bits: to read and to set what chattr sets.
GET_FLAGS, SET_FLAGS = 0x80086601, 0x40086602
# -S, -d, -A and, of folders, -D and -T: those that an owner sets.
FLAGS = {'file': [0x8, 0x40, 0x80], 'folder': [0x8, 0x40, 0x80, 0x10000, 0x20000]}


class Maker:
    def __init__(self, seed, tenant):
        self.random = random.Random(seed)
        self.tenant = tenant
        self.left = self.random.randint(3, 40)
        # Folders that hold something, by descriptor, for hard links.
        self.linkable = []

    def name(self):
        r = self.random
        kind = r.randrange(8)
        if kind == 0:
            return bytes(r.choice([b for b in range(1, 256) if b != 47]) for _ in range(r.randint(1, 20)))
        if kind == 1:
            return b'line\nbreak \x1b[31m' + str(r.random()).encode()
        if kind == 2:
            return bytes([r.choice(b'nm')]) * r.randint(90, 255)
        if kind == 3:
            return r.choice([b'...', b'-rf', b' ', b'a b', b'%', b'=', '\u202eabc'.encode(), b'PaxHeaders']) + str(r.randrange(1000)).encode()
        return str(r.randrange(10**6)).encode()

    def content(self, fd):
        """Content and holes; the size never matters much."""
        r = self.random
        kind = r.randrange(9)
        if kind == 0:
            return
        if kind == 1:
            os.ftruncate(fd, r.choice([1, 4095, 4096, 4097, 10**6, 5 * 2**30, 2**40 + 7]))
            return
        if kind in (2, 3):
            for _ in range(r.randint(1, 6)):
                at = r.choice([r.randrange(10**5), r.randrange(10**5) * 4096, r.randrange(2**33)])
                os.pwrite(fd, r.randbytes(r.choice([1, 511, 4096, 9000])), at)
            if r.random() < 0.5:
                os.ftruncate(fd, os.fstat(fd).st_size + r.randrange(10**6))
            return
        if kind == 4:
            os.write(fd, b'\0' * r.randrange(20000) + b'x' + b'\0' * r.randrange(20000))
            return
        os.write(fd, r.randbytes(r.randrange(r.choice([10, 600, 70000]))))

    def attributes(self, folder, name, kind):
        r = self.random
        path = b'/proc/self/fd/%d/%s' % (folder, name)
        if self.tenant:
            uid = gid = TENANT
        else:
            uid, gid = (r.choice([0, TENANT, TENANT, 12345, 2**32 - 2]) for _ in range(2))
        os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)
        if kind != 'link':
            mode = r.choice([0o644, 0o755, 0, 0o4711, 0o2755, 0o1777, 0o7777, r.randrange(0o10000)])
            os.chmod(name, mode, dir_fd=folder)
        for _ in range(r.choice([0, 0, 0, 1, 3])):
            where = ['user.'] if self.tenant else ['user.', 'user.', 'trusted.']
            if kind not in ('file', 'folder'):
                where = [] if self.tenant else ['trusted.']
            if not where:
                break
            attribute = (r.choice(where) + r.choice(['a', 'a=b%c', 'x' * r.randint(1, 100), '\u00e4'])).encode()
            value = r.choice([b'', b'line\nbreak\0', r.randbytes(r.randrange(900))])
            try:
                os.setxattr(path, attribute, value, follow_symlinks=False)
            except OSError:
                # They share one block.
                pass
        if kind in ('file', 'folder') and r.random() < 0.1:
            # An access control list (acl(5)): version 2; owner, uid 4711, group, mask, others.
            entries = [(1, 6, 0xffffffff), (2, 4, 4711), (4, 4, 0xffffffff), (16, 6, 0xffffffff), (32, 0, 0xffffffff)]
            value = (2).to_bytes(4, 'little') + b''.join(
                tag.to_bytes(2, 'little') + perm.to_bytes(2, 'little') + who.to_bytes(4, 'little') for tag, perm, who in entries)
            kinds = [b'system.posix_acl_access'] + ([b'system.posix_acl_default'] if kind == 'folder' else [])
            os.setxattr(path, r.choice(kinds), value, follow_symlinks=False)
        if kind == 'file' and not self.tenant and r.random() < 0.05:
            # CAP_NET_BIND_SERVICE, permitted, effective (capabilities(7)).
            os.setxattr(path, b'security.capability', bytes.fromhex('0100000200040000000000000000000000000000'), follow_symlinks=False)
        if kind in FLAGS and r.random() < 0.15:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
            flags = int.from_bytes(fcntl.ioctl(fd, GET_FLAGS, bytes(8))[:4], 'little') | r.choice(FLAGS[kind])
            fcntl.ioctl(fd, SET_FLAGS, flags.to_bytes(8, 'little'))
            os.close(fd)
        # Before 1970, after 2038, after 2242, and with fractions; ext4 ends in 2446.
        seconds = r.choice([0, -1, -10**9, 10**9, 2**31, 2**33 + 5, 14 * 10**9, r.randrange(-2**31, 2**33)])
        time = seconds * 10**9 + r.choice([0, 1, 999999999, r.randrange(10**9)])
        os.utime(name, ns=(time, time), dir_fd=folder, follow_symlinks=False)

    def fill(self, folder, depth):
        r = self.random
        for _ in range(r.randint(0, 8) if depth else 8):
            if self.left <= 0:
                return
            self.left -= 1
            name = self.name()
            try:
                self.one(folder, name, depth)
            except FileExistsError:
                pass

    def one(self, folder, name, depth):
        r = self.random
        kind = r.choice(['file'] * 4 + ['folder'] * 4 + ['link', 'link', 'fifo', 'socket', 'hard', 'hard', 'device', 'deep'])
        if kind == 'device' and self.tenant:
            kind = 'file'
        if kind == 'deep' and r.random() < 0.7:
            kind = 'folder'
        if kind == 'file':
            fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, dir_fd=folder)
            self.content(fd)
            os.close(fd)
        elif kind == 'folder':
            os.mkdir(name, dir_fd=folder)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            if depth < 12:
                self.fill(inner, depth + 1)
            os.close(inner)
        elif kind == 'link':
            target = r.choice([b'/etc/passwd', b'../../x', b'/', b'.', b'nowhere', b'x' * r.randint(1, 4000), b'\xff\n', b'../' * 30 + b'app'])
            os.symlink(target, name, dir_fd=folder)
        elif kind == 'fifo':
            os.mkfifo(name, dir_fd=folder)
        elif kind == 'socket':
            # bind(2) takes a short path only.
            os.mknod(name, stat.S_IFSOCK | 0o600, 0, dir_fd=folder)
        elif kind == 'device':
            which = r.choice([stat.S_IFCHR, stat.S_IFBLK])
            os.mknod(name, which | 0o600, os.makedev(r.randrange(4096), r.randrange(2**20)), dir_fd=folder)
        elif kind == 'hard':
            if not self.linkable:
                return
            there, first = r.choice(self.linkable)
            # Of whatever kind that is.
            os.link(first, name, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False)
            return
        elif kind == 'deep':
            # Past what a system call takes as a path.
            at = os.dup(folder)
            first = name
            for level in range(r.randint(17, 40)):
                step = name if level == 0 else b'n' * 250
                os.mkdir(step, dir_fd=at)
                inner = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = inner
            fd = os.open(b'at the end', os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, dir_fd=at)
            os.write(fd, b'not lost')
            os.close(fd)
            self.attributes(at, b'at the end', 'file')
            os.close(at)
            name, kind = first, 'folder'
        self.attributes(folder, name, kind)
        if kind not in ('folder', 'deep'):
            self.linkable.append((os.dup(folder), name))


def make(root, seed, count, tenant):
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for number in range(seed, seed + count):
        name = b'tree-%d' % number
        os.mkdir(name, dir_fd=top)
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
        maker = Maker(number, tenant)
        maker.fill(folder, 0)
        os.close(folder)
        maker.attributes(top, name, 'folder')
        for there, _ in maker.linkable:
            os.close(there)
    if tenant:
        # What is above a deep file, too.
        for folder, name, path in names(root):
            os.chown(name, TENANT, TENANT, dir_fd=folder, follow_symlinks=False)
    os.close(top)


def names(root):
    """Every name in a tree, with the open folder that it is in, and its path."""
    stack = [(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), b'', None)]
    while stack:
        folder, path, left = stack[-1]
        if left is None:
            left = sorted((os.fsencode(name) for name in os.listdir(folder)), reverse=True)
            stack[-1] = (folder, path, left)
        if not left:
            os.close(folder)
            stack.pop()
            continue
        name = left.pop()
        inner = path + b'/' + name
        yield folder, name, inner
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            stack.append((os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder), inner, None))


def sha256(folder, name, size):
    """Of every block that is not all zeros, with its place; holes are passed over, not read."""
    digest = hashlib.sha256()
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    at = 0
    while at < size:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            break
        at -= at % BLOCK
        block = os.pread(fd, BLOCK, at)
        if block.strip(b'\0'):
            digest.update(b'%d:' % at + block.ljust(BLOCK, b'\0'))
        at += BLOCK
    os.close(fd)
    return digest.hexdigest()


def short(text):
    """For people, and for a comparison: some are tens of thousands of bytes long."""
    return repr(text) if len(text) < 200 else repr(text[:40]) + '...' + hashlib.sha256(text).hexdigest()


def described(folder, name, path, seen):
    s = os.lstat(name, dir_fd=folder)
    kind = stat.S_IFMT(s.st_mode)
    if not stat.S_ISDIR(s.st_mode) and s.st_nlink > 1:
        first = seen.setdefault((s.st_dev, s.st_ino), path)
    else:
        first = path
    found = {'kind': kind, 'mode': stat.S_IMODE(s.st_mode), 'uid': s.st_uid, 'gid': s.st_gid, 'mtime': s.st_mtime_ns,
             'same as': short(first)}
    if kind == stat.S_IFREG:
        found['size'] = s.st_size
        if first == path:
            found['sha256'] = sha256(folder, name, s.st_size)
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        flags = int.from_bytes(fcntl.ioctl(fd, GET_FLAGS, bytes(8))[:4], 'little')
        found['flags'] = [flag for flag in FLAGS['folder'] if flags & flag]
        os.close(fd)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        found['device'] = s.st_rdev
    if kind == stat.S_IFLNK:
        found['link'] = short(os.readlink(name, dir_fd=folder))
    place = b'/proc/self/fd/%d/%s' % (folder, name)
    attributes = os.listxattr(place, follow_symlinks=False)
    found['xattrs'] = {
        short(os.fsencode(a)): short(os.getxattr(place, a, follow_symlinks=False)) for a in sorted(attributes) if a != 'security.selinux'}
    return found


def walk(root):
    seen = {}
    for folder, name, path in names(root):
        print(json.dumps({'path': short(path), **described(folder, name, path, seen)}, sort_keys=True))


def blocks(root):
    seen = {}
    for folder, name, path in names(root):
        s = os.lstat(name, dir_fd=folder)
        seen[(s.st_dev, s.st_ino)] = s.st_blocks
    print(sum(seen.values()))


def main(arguments):
    what, root = arguments[0], os.fsencode(arguments[1])
    if what == 'make':
        make(root, int(arguments[2]), int(arguments[3]), '--tenant' in arguments)
    elif what == 'walk':
        walk(root)
    elif what == 'blocks':
        blocks(root)
    else:
        sys.exit('what?')


if __name__ == '__main__':
    main(sys.argv[1:])
