package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"muster/pki"
	"muster/provision/member"
	"muster/provision/snapshot"
)

// ownCommand returns the arguments for a command that etcd's tools do not have,
// and whether argv calls for it by name.
func ownCommand(argv []string, name string) ([]string, bool) {
	program := filepath.Base(argv[0])
	if program == "etcdctl" || program == "etcdutl" || len(argv) < 2 || argv[1] != name {
		return nil, false
	}
	return argv[2:], true
}

// newBackupCommand saves what "muster backup" saves, on a host itself. The unit
// musterd-backup.service runs it.
func newBackupCommand(out io.Writer) *cobra.Command {
	var endpoint, ca, cert, key string
	var origin snapshot.Origin
	var keep int
	cmd := &cobra.Command{
		Use:           "musterctl backup DIR",
		Short:         "save a checked snapshot of the cluster into a directory",
		Args:          cobra.ExactArgs(1),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if origin.Cluster == "" || endpoint == "" {
				return errors.New("--cluster and --endpoint are needed")
			}
			place := snapshot.Place{Dir: args[0], Keep: keep}
			return saveBackup(cmd.Context(), out, endpoint, pemFiles{ca, cert, key}, place, origin)
		},
	}
	f := cmd.Flags()
	f.StringVar(&origin.Cluster, "cluster", "", "name of the cluster")
	f.StringVar(&origin.Member, "member", "", "name of the member that is asked")
	f.StringVar(&endpoint, "endpoint", "", "client URL of that member")
	f.StringVar(&ca, "cacert", "", "file of the CA's certificate")
	f.StringVar(&cert, "cert", "", "file of the client's certificate")
	f.StringVar(&key, "key", "", "file of its key")
	f.IntVar(&keep, "keep", 0, "how many snapshots stay in the directory; 0 keeps all")
	return cmd
}

type pemFiles struct{ ca, cert, key string }

func saveBackup(ctx context.Context, out io.Writer, endpoint string, files pemFiles, place snapshot.Place, origin snapshot.Origin) error {
	var texts [3][]byte
	for i, name := range []string{files.ca, files.cert, files.key} {
		text, err := os.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read the certificates: %w", err)
		}
		texts[i] = text
	}
	config, err := member.TLS(texts[0], pki.Pair{Cert: texts[1], Key: texts[2]})
	if err != nil {
		return err
	}
	client, err := member.Connect(endpoint, config, new(net.Dialer).DialContext)
	if err != nil {
		return err
	}
	defer client.Close() //nolint:errcheck // what it has sent is checked
	saved, err := place.Save(ctx, client, origin)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "saved %s: revision %d, %d keys, %d bytes; removed %d older ones\n", saved.Path, saved.Revision, saved.Keys, saved.Size, len(saved.Removed))
	return err
}
