package remote

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
)

// File says where on a host a file goes and whose it is.
type File struct {
	Path  string
	Mode  fs.FileMode // permission bits
	Owner string
	Group string
	// Check is a shell command that must accept the complete new file, whose
	// path is in $new, before it replaces the old one. Empty for none.
	Check string
}

func (f File) args(sum string) []string {
	return []string{f.Path, fmt.Sprintf("%04o", f.Mode.Perm()), f.Owner + ":" + f.Group, sum}
}

// installScript puts what %s writes to standard output in place of $1. The
// file appears whole or not at all: it is written beside the target, checked,
// flushed to disk and renamed. What an interrupted run left behind has the
// same name and is overwritten. The name keeps the target's suffix, because
// systemd-analyze judges a unit by it.
const installScript = `set -eu
umask 077
target=$1 mode=$2 owner=$3 want=$4
dir=${target%%/*}
new=$dir/.muster-new-${target##*/}
trap 'rm -f "$new"' EXIT
%s > "$new"
got=$(sha256sum < "$new")
got=${got%%%% *}
if [ "$got" != "$want" ]; then
	echo "$target: sha256 is $got after the transfer, not $want" >&2
	exit 1
fi
chown "$owner" "$new"
chmod "$mode" "$new"
sync "$new"
%s
mv -fT "$new" "$target"
trap - EXIT
sync "$dir"
`

// WriteFile places a small file, such as a certificate or a unit. The content
// travels on standard input and appears in no argument list.
func (h *Host) WriteFile(ctx context.Context, f File, content []byte) error {
	sum := sha256.Sum256(content)
	return h.WriteFrom(ctx, f, hex.EncodeToString(sum[:]), bytes.NewReader(content))
}

// WriteFrom is WriteFile for content of any size with a known SHA-256, in
// hexadecimal. It is read once, as fast as the host takes it.
func (h *Host) WriteFrom(ctx context.Context, f File, sum string, content io.Reader) error {
	_, err := h.Run(ctx, Command{
		Label:  "write " + f.Path,
		Script: fmt.Sprintf(installScript, "cat", f.Check),
		Args:   f.args(sum),
		Stdin:  content,
	})
	return err
}

// installTogetherScript is installScript for several small files, whose
// contents follow each other on standard input: all of them are whole on the
// disk before the first one is renamed, and then nothing comes in between. Of
// each file it is given path, mode, owner, hash and size.
const installTogetherScript = `set -eu
umask 077
new_of() { new=${1%/*}/.muster-new-${1##*/}; }
discard() {
	while [ $# -gt 0 ]; do
		new_of "$1"
		rm -f "$new"
		shift 5
	done
}
receive() {
	while [ $# -gt 0 ]; do
		new_of "$1"
		head -c "$5" > "$new" || return 1
		got=$(sha256sum < "$new")
		got=${got%% *}
		if [ "$got" != "$4" ]; then
			echo "$1: sha256 is $got after the transfer, not $4" >&2
			return 1
		fi
		chown "$3" "$new" && chmod "$2" "$new" && sync "$new" || return 1
		shift 5
	done
}
replace() {
	while [ $# -gt 0 ]; do
		new_of "$1"
		mv -fT "$new" "$1"
		shift 5
	done
}
flush() {
	while [ $# -gt 0 ]; do
		sync "${1%/*}"
		shift 5
	done
}
if ! receive "$@"; then
	discard "$@"
	exit 1
fi
replace "$@"
flush "$@"
`

// WriteTogether places small files that belong together, such as a certificate
// and its key: whoever opens them finds both old or both new, but for the
// moment between two renames. Checks are not made.
func (h *Host) WriteTogether(ctx context.Context, files []File, contents [][]byte) error {
	var names, args []string
	for i, f := range files {
		sum := sha256.Sum256(contents[i])
		names = append(names, f.Path)
		args = append(append(args, f.args(hex.EncodeToString(sum[:]))...), strconv.Itoa(len(contents[i])))
	}
	_, err := h.Run(ctx, Command{
		Label:  "write " + strings.Join(names, " and "),
		Script: installTogetherScript,
		Args:   args,
		Stdin:  bytes.NewReader(bytes.Join(contents, nil)),
	})
	return err
}

// stage is the directory of the login user that uploads go through, made by
// the first one.
type stage struct {
	once sync.Once
	dir  string
	err  error
}

// stageScript makes a directory only the login user can write to, and removes
// those of runs that were cut off.
const stageScript = `umask 077
rm -rf /var/tmp/muster-upload.* 2>/dev/null
mktemp -d /var/tmp/muster-upload.XXXXXX || mktemp -d "$HOME/.muster-upload.XXXXXX"`

func (s *stage) make(ctx context.Context, h *Host) (string, error) {
	s.once.Do(func() {
		var result Result
		result, s.err = h.Run(ctx, Command{Label: "make a directory for uploads", Script: stageScript, AsLogin: true})
		s.dir = strings.TrimSpace(result.Stdout)
	})
	return s.dir, s.err
}

func (s *stage) remove(h *Host) {
	if s.dir == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := h.Run(ctx, Command{Label: "remove the directory for uploads", Script: `rm -rf "$1"`, Args: []string{s.dir}, AsLogin: true})
	if err != nil {
		h.log.Debug("left behind", "directory", s.dir, "error", err)
	}
}

// compressBelow is the speed, in bytes per second, under which the rest of an
// upload goes compressed. At twice that speed compressing and unpacking take
// longer than sending the bytes that they save.
const compressBelow = 16 << 20

// probeSize is how much is sent as it is to learn the speed of the link.
const probeSize = 1 << 20

// readWhole and readPacked write the content of a staged file, $5, to standard
// output: readPacked when all but its beginning is compressed.
var (
	readWhole  = `cat "$5"`
	readPacked = fmt.Sprintf(`{ head -c %d; gzip -dc; } < "$5"`, probeSize)
)

// Upload places a large file: over SFTP into a directory of the login user,
// then installed as WriteFile does. Progress, when not nil, is called with
// the bytes sent and the bytes to send in all.
func (h *Host) Upload(ctx context.Context, f File, p *Payload, progress func(sent, total int64)) error {
	return h.upload(ctx, f, p, compressBelow, progress)
}

func (h *Host) upload(ctx context.Context, f File, p *Payload, compressBelow float64, progress func(sent, total int64)) error {
	dir, err := h.stage.make(ctx, h)
	if err != nil {
		return err
	}
	begin := time.Now()
	staged := path.Join(dir, path.Base(f.Path))
	read, err := send(ctx, h.client, p, staged, compressBelow, progress)
	if err != nil {
		return h.uploadError(ctx, f, staged, err)
	}
	h.log.Debug("sent", "file", f.Path, "elapsed", time.Since(begin), "unpack", read)
	_, err = h.Run(ctx, Command{
		Label:  "install " + f.Path,
		Script: fmt.Sprintf(installScript, read, f.Check) + `rm -f "$5"`,
		Args:   append(f.args(p.sum), staged),
	})
	return err
}

// send writes the payload to staged, after the beginning compressed if the link
// is slow, and returns the command that reads it back.
func send(ctx context.Context, conn *ssh.Client, p *Payload, staged string, compressBelow float64, progress func(sent, total int64)) (read string, err error) {
	client, err := sftp.NewClient(conn, sftp.UseConcurrentWrites(true))
	if err != nil {
		return "", fmt.Errorf("start sftp: %w", err)
	}
	defer client.Close() //nolint:errcheck // what was written through it is checked by its hash
	stop := context.AfterFunc(ctx, func() { _ = client.Close() })
	defer stop()

	file, err := client.Create(staged)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	probe := p.content[:min(len(p.content), probeSize)]
	begin := time.Now()
	if _, err := file.ReadFrom(bytes.NewReader(probe)); err != nil {
		return "", err
	}
	rest, read := p.content[len(probe):], readWhole
	if speed := float64(len(probe)) / time.Since(begin).Seconds(); speed < compressBelow && len(rest) > 0 {
		if rest, err = p.packedRest(); err != nil {
			return "", fmt.Errorf("compress: %w", err)
		}
		read = readPacked
	}
	_, err = file.ReadFrom(&countingReader{
		Reader: bytes.NewReader(rest), sent: int64(len(probe)), total: int64(len(probe) + len(rest)), report: progress,
	})
	return read, err
}

// countingReader reports progress. Its Len, from bytes.Reader, lets sftp write
// concurrently.
type countingReader struct {
	*bytes.Reader
	sent, total int64
	report      func(sent, total int64)
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.sent += int64(n)
	if c.report != nil {
		c.report(c.sent, c.total)
	}
	return n, err
}

// uploadError adds what SFTP does not say. Its protocol knows no "disk full",
// only "failure".
func (h *Host) uploadError(ctx context.Context, f File, staged string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: upload %s: %w", h.name, f.Path, context.Cause(ctx))
	}
	err = h.diagnose(err)
	if errors.Is(err, ErrConnectionLost) {
		return fmt.Errorf("%s: upload %s: %w", h.name, f.Path, err)
	}
	result, dfErr := h.Run(ctx, Command{
		Label: "look at the disk", Script: `df -Pk "$1" | tail -n 1`, Args: []string{path.Dir(staged)}, AsLogin: true,
	})
	if dfErr != nil {
		return fmt.Errorf("%s: upload %s: %w", h.name, f.Path, err)
	}
	return fmt.Errorf("%s: upload %s to %s: %w (df -Pk says: %s); is the disk full?", h.name, f.Path, staged, err, strings.TrimSpace(result.Stdout))
}
