package ctlv2

import (
	"fmt"
	"os/exec"
	"slices"

	"github.com/urfave/cli"
	"go.etcd.io/etcd/client/v2"
)

var afterFlag = cli.IntFlag{Name: "after-index", Usage: "watch after the given index"}

func (s *session) watchCommand() cli.Command {
	return cli.Command{
		Name: "watch", Usage: "watch a key for changes", ArgsUsage: "<key>",
		Flags: []cli.Flag{
			cli.BoolFlag{Name: "forever, f", Usage: "forever watch a key until CTRL+C"},
			afterFlag,
			cli.BoolFlag{Name: "recursive, r", Usage: "returns all values for key and child keys"},
		},
		Action: s.onKey(func(c *cli.Context, keys client.KeysAPI, key string) error {
			return s.follow(c, keys, key, func(resp *client.Response) (bool, error) {
				if resp.Node.Dir {
					return true, nil
				}
				if c.Bool("recursive") {
					s.say("[%s] %s\n", resp.Action, resp.Node.Key)
				}
				return c.Bool("forever"), s.print(c, resp)
			})
		}),
	}
}

// follow calls fn with what happens to a key until it returns false, or until
// the command is interrupted.
func (s *session) follow(c *cli.Context, keys client.KeysAPI, key string, fn func(*client.Response) (bool, error)) error {
	watcher := keys.Watcher(key, &client.WatcherOptions{AfterIndex: unsigned(c, "after-index"), Recursive: c.Bool("recursive")})
	for more := true; more; {
		resp, err := watcher.Next(s.ctx)
		if err != nil {
			return s.ended(c, err)
		}
		if more, err = fn(resp); err != nil {
			return err
		}
	}
	return nil
}

// ended says why a watch has ended, unless it was interrupted.
func (s *session) ended(c *cli.Context, err error) error {
	select {
	case <-s.ctx.Done():
		return nil
	default:
		return s.failed(c, exitServerError, err)
	}
}

func (s *session) execWatchCommand() cli.Command {
	return cli.Command{
		Name: "exec-watch", Usage: "watch a key for changes and exec an executable", ArgsUsage: "<key> <command> [args...]",
		Flags: []cli.Flag{
			afterFlag,
			cli.BoolFlag{Name: "recursive, r", Usage: "watch all values for key and child keys"},
		},
		Action: func(c *cli.Context) error {
			keys, err := s.keys(c)
			if err != nil {
				return err
			}
			args := c.Args()
			if len(args) < 2 {
				return s.badArgs(c, "key and command to exec required")
			}
			key, command := args[len(args)-1], args[:len(args)-1]
			if slices.Contains(args[1:], "--") {
				key, command = args[0], args[2:]
			}
			return s.follow(c, keys, key, func(resp *client.Response) (bool, error) {
				if resp.Node.Dir {
					fmt.Fprintf(s.Err, "Ignored dir %s change\n", resp.Node.Key)
					return true, nil
				}
				return true, s.launch(command, resp)
			})
		},
	}
}

// launch starts a command that is told of a change, and does not wait for it.
func (s *session) launch(command []string, resp *client.Response) error {
	process := exec.Command(command[0], command[1:]...) //nolint:gosec // what the user asks for
	process.Stdout, process.Stderr = s.Out, s.Err
	process.Env = append(slices.Clone(s.Environ),
		"ETCD_WATCH_ACTION="+resp.Action,
		fmt.Sprintf("ETCD_WATCH_MODIFIED_INDEX=%d", resp.Node.ModifiedIndex),
		"ETCD_WATCH_KEY="+resp.Node.Key,
		"ETCD_WATCH_VALUE="+resp.Node.Value)
	if err := process.Start(); err != nil {
		return plain("%w", err)
	}
	go func() { _ = process.Wait() }() // how it ends is its own affair
	return nil
}
