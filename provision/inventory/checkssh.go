package inventory

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"golang.org/x/crypto/ssh"
)

// maxBastions bounds the machines one connection may go through.
const maxBastions = 4

func (d *document) checkClusterSSH(s SSH) {
	if d.given("ssh.hostKey") {
		d.problem("ssh.hostKey", "a host key belongs to one host", "write it in that host's ssh")
	}
	d.checkSSHAddress("ssh")
	d.checkSSH("ssh", s)
}

func (d *document) checkHostSSH(host string, s SSH) {
	field := join(host, "ssh")
	d.checkSSHAddress(field)
	d.checkSSH(field, s)
}

// checkSSHAddress reports an address where the host's own is meant.
func (d *document) checkSSHAddress(field string) {
	if f := join(field, "address"); d.given(f) {
		d.problem(f, "only a bastion has an address here", "write the address of the controller itself")
	}
}

var userShape = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.\\@-]*\$?$`)

func (d *document) checkSSH(field string, s SSH) {
	if f := join(field, "user"); d.given(f) && !userShape.MatchString(s.User) {
		d.problem(f, fmt.Sprintf("%q is not a user name", printable(s.User)), "write the name of a user of that machine")
	}
	d.checkPort(join(field, "port"), s.Port)
	if f := join(field, "identityFile"); d.given(f) {
		d.checkIdentityFile(f, s.IdentityFile)
	}
	if f := join(field, "hostKey"); d.given(f) {
		d.checkHostKey(f, s.HostKey)
	}
	if f := join(field, "bastion"); d.given(f) && s.Bastion != nil {
		d.checkBastion(f, *s.Bastion)
	}
}

func (d *document) checkBastion(field string, b SSH) {
	if strings.Count(field, ".bastion") > maxBastions {
		d.problem(field, "the connection goes through too many machines", fmt.Sprintf("write %d bastions or fewer", maxBastions))
		return
	}
	address := join(field, "address")
	switch {
	case d.bad[address]:
	case b.Address == "":
		d.problem(address, "is missing", "write the IP address or the name of the bastion")
	default:
		if fault := addressFault(b.Address); fault != nil {
			d.problem(address, fmt.Sprintf("%q %s", withoutUser(b.Address), fault.text), fault.hint)
		}
	}
	d.checkSSH(field, b)
}

// checkHostKey accepts what ssh-keygen -l prints and nothing that is weaker.
func (d *document) checkHostKey(field, fingerprint string) {
	const hint = "write SHA256: and 43 characters, as printed by: ssh-keyscan HOST | ssh-keygen -lf -"
	encoded, ok := strings.CutPrefix(fingerprint, "SHA256:")
	if ok {
		if sum, err := base64.RawStdEncoding.Strict().DecodeString(encoded); err == nil && len(sum) == 32 {
			return
		}
	}
	if key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(fingerprint)); err == nil {
		d.problem(field, "is a public key, not its fingerprint", "write "+ssh.FingerprintSHA256(key))
		return
	}
	d.problem(field, fmt.Sprintf("%q is not a SHA256 fingerprint", printable(fingerprint)), hint)
}

// checkIdentityFile reports a private key that ssh could not use, or would
// not, as far as the file tells.
func (d *document) checkIdentityFile(field, path string) {
	if strings.Contains(path, "PRIVATE KEY") {
		d.problem(field, "holds a private key", "write the path of the file that holds it, and make a new key: this one is no longer secret")
		return
	}
	name := printable(path)
	if fault := regularFileFault(path); fault != "" {
		d.problem(field, name+" "+fault, "write the path of a private key")
		return
	}
	info, err := os.Stat(path)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		d.problem(field, fmt.Sprintf("%s can be read by other users (mode %04o)", name, info.Mode().Perm()), "run: chmod 600 "+name)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		d.problem(field, fmt.Sprintf("%s cannot be read: %v", name, errors.Unwrap(err)), "make it readable for you")
		return
	}
	_, err = ssh.ParseRawPrivateKey(text)
	var encrypted *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &encrypted):
		if agent, _ := d.lookupEnv("SSH_AUTH_SOCK"); agent == "" && !d.canPrompt {
			d.problem(field, name+" is encrypted, there is no ssh-agent, and nobody to ask for the passphrase",
				"run: eval $(ssh-agent) && ssh-add "+name+", or run muster on a terminal")
		}
	case err != nil:
		d.problem(field, name+" is not a private key", "write the path of the private key, not of the .pub file")
	}
}

func regularFileFault(path string) string {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "does not exist"
	case err != nil:
		return "cannot be reached"
	case !info.Mode().IsRegular():
		return "is not a file"
	}
	return ""
}
