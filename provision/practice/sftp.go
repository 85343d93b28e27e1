package practice

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path"

	"github.com/pkg/sftp"
)

// sftpFiles serves a host's files over SFTP.
type sftpFiles struct {
	host  *Host
	files *view
	conn  net.Conn
}

var (
	_ sftp.FileReader           = (*sftpFiles)(nil)
	_ sftp.FileWriter           = (*sftpFiles)(nil)
	_ sftp.PosixRenameFileCmder = (*sftpFiles)(nil)
	_ sftp.LstatFileLister      = (*sftpFiles)(nil)
	_ sftp.ReadlinkFileLister   = (*sftpFiles)(nil)
	_ sftp.RealPathFileLister   = (*sftpFiles)(nil)
)

func (s *sftpFiles) Fileread(r *sftp.Request) (io.ReaderAt, error) { return s.files.open(r.Filepath) }

func (s *sftpFiles) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	p := r.Pflags()
	flags := os.O_RDWR
	for flag, asked := range map[int]bool{os.O_CREATE: p.Creat, os.O_TRUNC: p.Trunc, os.O_EXCL: p.Excl} {
		if asked {
			flags |= flag
		}
	}
	f, err := s.files.create(r.Filepath, flags, 0o666)
	if err != nil {
		return nil, err
	}
	return &sftpUpload{file: f, host: s.host, conn: s.conn}, nil
}

// sftpUpload is a file that an SFTP client writes.
type sftpUpload struct {
	*file
	host *Host
	conn net.Conn
}

func (u *sftpUpload) WriteAt(p []byte, off int64) (int, error) {
	if u.host.faults.upload(len(p)) {
		return 0, errors.Join(errors.New("practice host: the connection drops here"), u.conn.Close())
	}
	return u.file.WriteAt(p, off)
}

func (s *sftpFiles) Filecmd(r *sftp.Request) error {
	switch r.Method {
	case "Setstat":
		return s.setstat(r)
	case "Rename":
		if _, err := s.files.stat(r.Target, false); err == nil {
			return fs.ErrExist // version 3 of the protocol never replaces
		}
		return s.files.rename(r.Filepath, r.Target)
	case "Rmdir", "Remove":
		return s.files.remove(r.Filepath, false)
	case "Mkdir":
		return s.files.mkdir(r.Filepath, 0o755)
	case "Symlink":
		return s.files.symlink(r.Filepath, r.Target)
	}
	return sftp.ErrSSHFxOpUnsupported
}

func (s *sftpFiles) PosixRename(r *sftp.Request) error { return s.files.rename(r.Filepath, r.Target) }

func (s *sftpFiles) setstat(r *sftp.Request) error {
	flags, attrs := r.AttrFlags(), r.Attributes()
	if flags.Permissions {
		if err := s.files.chmod(r.Filepath, attrs.FileMode().Perm()); err != nil {
			return err
		}
	}
	if flags.Size {
		f, err := s.files.create(r.Filepath, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(f.os.Truncate(int64(attrs.Size)), f.Close())
	}
	if flags.UidGid {
		return sftp.ErrSSHFxOpUnsupported
	}
	return nil
}

// entries are the answer to a listing.
type entries []fs.FileInfo

func (e entries) ListAt(into []fs.FileInfo, offset int64) (int, error) {
	if offset >= int64(len(e)) {
		return 0, io.EOF
	}
	n := copy(into, e[offset:])
	if n < len(into) {
		return n, io.EOF
	}
	return n, nil
}

func (s *sftpFiles) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	if r.Method != "List" {
		info, err := s.files.stat(r.Filepath, true)
		return entries{info}, err
	}
	dir, err := s.files.readDir(r.Filepath)
	if err != nil {
		return nil, err
	}
	var all entries
	for _, d := range dir {
		info, err := d.Info()
		if err != nil {
			return nil, err
		}
		all = append(all, info)
	}
	return all, nil
}

func (s *sftpFiles) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	info, err := s.files.stat(r.Filepath, false)
	return entries{info}, err
}

func (s *sftpFiles) Readlink(name string) (string, error) { return s.files.readlink(name) }

func (s *sftpFiles) RealPath(name string) (string, error) {
	if !path.IsAbs(name) {
		name = path.Join(s.files.accounts.homeOf(s.files.user), name)
	}
	p, err := s.files.real(name)
	if err != nil {
		return "", err
	}
	return s.files.virtual(p), nil
}
